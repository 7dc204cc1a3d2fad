"""The commands that a finished run can be given to, as its end names them."""

from __future__ import annotations

import shlex

import click
from rich.console import Console

from stackwise_core.cli.shown_paths import shown
from stackwise_core.cli.tables import print_aligned
from stackwise_core.runs.export import has_model
from stackwise_core.training.events import RunResult
from stackwise_core.training.plan import Plan


def next_steps(result: RunResult, plan: Plan, *, exportable: bool = True) -> list[tuple[str, list[str]]]:
    """Return what can be done with a run, and the words of the command that does it; only what it allows.

    Args:
        exportable: whether other libraries can load its adapters.
    """
    run, name = str(shown(result.directory)), result.directory.name
    steps = [("see it on a page", ["report", run])]
    if not result.keeps_weights:
        return [(what, ["stackwise", *words]) for what, words in steps]
    causal = all(planned.band is None for planned in plan.phases)
    steps = [
        ("measure it again", ["evaluate", run])
        if result.likelihoods
        else ("measure it", ["evaluate", run, "--corpus"]),
        ("write text", ["sample", run, *(["--prompt", "The "] if causal else [])]),
        *steps,
    ]
    if exportable and has_model(plan.spec, len(plan.routes)):
        steps.append(("use it elsewhere", ["export", run, "--to", "hf", f"{name}-hf"]))
    return [(what, ["stackwise", *words]) for what, words in steps]


def print_next_steps(console: Console, result: RunResult, plan: Plan, *, exportable: bool) -> None:
    """Print a line for each command, as a shell takes it; one that needs a text to be named ends with TEXT."""
    lines = [
        (what, shlex.join(words) + (" TEXT" if words[-1] == "--corpus" else ""))
        for what, words in next_steps(result, plan, exportable=exportable)
    ]
    click.echo("\nWhat next:", err=console.stderr)
    print_aligned(lines, indent="  ", stderr=console.stderr)
