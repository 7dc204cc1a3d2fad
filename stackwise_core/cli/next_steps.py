"""Commands that can be run on a finished run, as its end names them."""

from __future__ import annotations

import shlex

import click
from rich.console import Console

from stackwise_core.cli import plugin_commands
from stackwise_core.cli.shown_paths import shown
from stackwise_core.cli.tables import print_aligned
from stackwise_core.config.source_formats import HOOK
from stackwise_core.engine.events.events import RunResult
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.engine.weights.export import is_one_model
from stackwise_core.interfaces.command import EndedRun
from stackwise_core.registry import Registry


def next_steps(
    result: RunResult, plan: Plan, registry: Registry, *, exportable: bool = True
) -> list[tuple[str, list[str]]]:
    """Return the possible next steps with a run: a description and the words of its command.

    Args:
        registry: the plugins, whose commands are among them.
        exportable: whether other libraries can load its adapters.
    """
    run, name = str(shown(result.directory)), result.directory.name
    causal = all(planned.band is None for planned in plan.phases)
    ended = EndedRun(path=run, keeps_weights=result.keeps_weights, causal=causal)
    steps = plugin_commands.next_steps(registry, ended)
    if result.keeps_weights:
        measure = (
            ("measure it again", ["evaluate", run])
            if result.likelihoods
            else ("measure it", ["evaluate", run, "--corpus"])
        )
        steps = [measure, *steps]
        to = _export_format(registry)
        if exportable and to is not None and is_one_model(plan.spec, len(plan.routes)):
            steps.append(("use it elsewhere", ["export", run, "--to", to, f"{name}-{to}"]))
    return [(what, ["stackwise", *words]) for what, words in steps]


def _export_format(registry: Registry) -> str | None:
    """Return the shortest name of the first format that a run can be exported to."""
    usable = (each for each in registry.implementations(HOOK) if registry.state(each) == "ready")
    first = next(usable, None)
    return None if first is None else min(first.names, key=len)


def print_next_steps(console: Console, result: RunResult, plan: Plan, registry: Registry, *, exportable: bool) -> None:
    """Print a line for each command, as a shell takes it; one that needs a text to be named ends with TEXT."""
    lines = [
        (what, shlex.join(words) + (" TEXT" if words[-1] == "--corpus" else ""))
        for what, words in next_steps(result, plan, registry, exportable=exportable)
    ]
    if not lines:
        return
    click.echo("\nWhat next:", err=console.stderr)
    print_aligned(lines, indent="  ", stderr=console.stderr)
