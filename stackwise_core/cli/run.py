"""``stackwise run``: train what a configuration describes, or go on with a run that broke off."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import config_options


@click.command(short_help="Train what FILE describes.")
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to stderr.")
def run(file: str, overrides: Sequence[str], plugins: Sequence[str], as_json: bool) -> None:
    """Train the rack that FILE describes, phase by phase, into a directory of its own.

    FILE may also be the directory of a run that broke off. It goes on with the first phase that isn't done.
    """
    from stackwise_core.config.load import load, load_run

    directory = Path(file) if os.path.isdir(file) else None
    if directory is None:
        config, registry = load(file, overrides=overrides, plugins=plugins)
    else:
        if _is_finished(directory, overrides):
            click.echo(f'{directory} is finished. "stackwise evaluate {directory}" measures it.', err=as_json)
            if as_json:
                click.echo(json.dumps({"directory": str(directory), "finished": True}))
            return
        config, registry = load_run(directory, plugins=plugins)

    # torch comes in here, after the configuration was found to be right.
    from cattrs import unstructure

    from stackwise_core.cli.progress import tokenising, watching
    from stackwise_core.runs.directory import RunDirectory
    from stackwise_core.training.engine import Engine
    from stackwise_core.training.plan import make_plan
    from stackwise_core.training.setup import set_up

    console = Console(stderr=as_json)
    with tokenising(console) as progress:
        setup = set_up(config, registry, progress)
        plan = make_plan(setup)
    begun = None if directory is None else RunDirectory(directory)
    engine = None
    try:
        with watching(console) as listener:
            engine = Engine(setup, plan, registry, listener, begun)
            result = engine.run()
    except KeyboardInterrupt:
        if engine is not None:  # said once the bars are gone, which would draw over it
            click.echo(f'"stackwise run {engine.directory}" goes on with this run.', err=True)
        raise
    if as_json:
        click.echo(json.dumps({**unstructure(result), "directory": str(result.directory)}, indent=2))


def _is_finished(directory: Path, overrides: Sequence[str]) -> bool:
    """Whether a run has nothing left to do.

    Raises:
        UsageError: it is no run, or it can't go on as asked.
        StackwiseError: its configuration isn't what it began with.
    """
    from stackwise_core.config.source_run import FINISHED, PROGRESS, nearest_run
    from stackwise_core.errors import UsageError
    from stackwise_core.runs.manifest import Manifest

    manifest = Manifest(directory)
    if PROGRESS not in manifest:
        if any(directory.glob("config.toml.*.new")):
            raise UsageError(f"{directory}: this run was stopped before it had begun. Delete it, and start anew.")
        near = nearest_run(directory)
        guess = f". Did you mean {near}?" if near else ""
        raise UsageError(
            f"{directory}: expected a configuration, or the directory of a run; there is no {PROGRESS}{guess}"
        )
    if overrides:
        raise UsageError(f"--set: the run in {directory} goes on as it began. Leave it out, or start from a TOML.")
    if FINISHED in manifest:
        return True
    manifest.checked("config.toml")
    return False
