"""``stackwise run``: train what a configuration describes, or go on with a run that broke off."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import config_options
from stackwise_core.cli.output import json_option, print_json


@click.command(short_help="Train what FILE describes.")
@config_options
@click.option("--fresh", is_flag=True, help="Begin anew, in a directory of its own, though a run broke off.")
@click.option(
    "--accept-change",
    is_flag=True,
    help="Go on though the configuration has changed, where no weight depends on what has.",
)
@json_option("Print the result as JSON; progress goes to stderr.")
def run(
    file: str, overrides: Sequence[str], plugins: Sequence[str], fresh: bool, accept_change: bool, as_json: bool
) -> None:
    """Train the rack that FILE describes, phase by phase, into a directory of its own.

    If the last run of that name broke off, it goes on with that one, from its last checkpoint. FILE may also be the
    directory of a run.
    """
    from stackwise_core.api import load_config, prepare
    from stackwise_core.errors import UsageError
    from stackwise_core.runs.beginning import Finished, begin

    configuration = load_config(file, overrides=overrides, plugins=plugins)
    try:
        configuration = begin(configuration, fresh=fresh, accept_change=accept_change)
    except Finished:
        if overrides:
            raise UsageError(f"--set: the run in {file} is finished. With --fresh a new one begins.") from None
        click.echo(f'{file} is finished. "stackwise evaluate {shlex.quote(file)}" measures it.', err=as_json)
        if as_json:
            print_json({"directory": file, "finished": True}, indent=None)
        return

    from cattrs import unstructure

    from stackwise_core.cli.progress import tokenising, watching
    from stackwise_core.runs.directory import Busy
    from stackwise_core.training.events import Event, RunStarted
    from stackwise_core.training.stopping import Stopping

    console, directory = Console(stderr=as_json), None
    with tokenising(console, "planning") as tokenised:
        prepared = prepare(configuration, tokenised)
    try:
        with watching(console, advise=not as_json) as show:

            def listen(event: Event) -> None:
                nonlocal directory
                if isinstance(event, RunStarted):
                    directory = event.directory
                show(event)

            stopping = Stopping(
                lambda: console.print("stopping after this step; once more stops at once", highlight=False)
            )
            result = prepared.run(listen, stopping)
    except Busy as busy:
        raise Busy(f"{busy} Wait for it, or begin another with --fresh.") from None
    except (KeyboardInterrupt, OSError, MemoryError):
        # Said once the bars are gone, which would draw over it.
        if directory is not None:
            click.echo(_what_next(directory), err=True)
        raise
    if as_json:
        print_json({**unstructure(result), "directory": str(result.directory)})


def _what_next(directory: Path) -> str:
    """What to do about a run that was interrupted or has failed."""
    from stackwise_core.runs.beginning import is_finished

    if is_finished(directory):
        return f'All of it is trained: "stackwise evaluate {shlex.quote(str(directory))}" measures it.'
    return f'"stackwise run {shlex.quote(str(directory))}" goes on with this run.'
