"""``stackwise run``: train what a configuration describes, or resume an interrupted run."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from stackwise_core.cli.arguments import beyond_machine_option, config_options
from stackwise_core.cli.output import Console, discard_output, json_option, print_json
from stackwise_core.cli.shown_paths import shown


@click.command(short_help="Train what FILE describes.")
@config_options
@click.option(
    "--fresh", is_flag=True, help="Begin a new run in a directory of its own, even if the last one was interrupted."
)
@click.option(
    "--accept-change",
    is_flag=True,
    help="Resume although a plugin has changed, or configuration keys that no weight depends on.",
)
@beyond_machine_option
@json_option("Print the result as JSON; progress goes to stderr.")
def run(
    file: str,
    overrides: Sequence[str],
    plugins: Sequence[str],
    fresh: bool,
    accept_change: bool,
    beyond_machine: bool,
    as_json: bool,
) -> None:
    """Train the rack that FILE describes, phase by phase, into a directory of its own.

    If the last run of that name was interrupted, it is resumed from its last checkpoint. FILE may also be the directory
    of a run.
    """
    from stackwise_core.api import load_config, prepare
    from stackwise_core.engine.loop.beginning import Finished, begin
    from stackwise_core.errors import UsageError, is_out_of_memory

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

    from stackwise_core.cli.run_display import tokenising, watching
    from stackwise_core.engine.events.events import EnvironmentChanged, Event, PhaseStarted, RunStarted
    from stackwise_core.engine.events.stopping import Stopping
    from stackwise_core.engine.runs.directory import Busy

    console, directory = Console(stderr=as_json), None
    unshown: OSError | None = None
    before_a_step = RunStarted, EnvironmentChanged, PhaseStarted  # stopped there, a run would leave nothing
    stopping = Stopping(lambda: console.print("stopping after this step; once more stops at once", highlight=False))
    try:
        with stopping.heeding():
            with tokenising(console, "planning") as tokenised:
                prepared = prepare(configuration, tokenised)
            adapters = prepared.setup.implementations.formats.adapters.values()
            exportable = not any(adapter.unexportable for adapter in adapters)
            advise = None if as_json else configuration.registry
            with watching(console, advise=advise, exportable=exportable) as show:

                def listen(event: Event) -> None:
                    nonlocal directory, unshown
                    if isinstance(event, RunStarted):
                        directory = event.directory
                    if unshown is None:
                        try:
                            show(event)
                        except OSError as error:
                            unshown = error
                            discard_output()
                    if unshown is not None and not isinstance(event, before_a_step):
                        stopping.request()

                result = prepared.run(listen, stopping, beyond_machine=beyond_machine)
    except Busy as busy:
        raise Busy(f"{busy} Wait for it, or begin another with --fresh.") from None
    except (Exception, KeyboardInterrupt) as error:
        # Said once the bars are gone, which would draw over it.
        stopped = isinstance(error, KeyboardInterrupt | OSError) or is_out_of_memory(error)
        if directory is not None and stopped:
            with suppress(OSError):
                click.echo(_what_next(directory, unshown), err=True)
        elif isinstance(error, BrokenPipeError):
            with suppress(OSError):
                click.echo(f"Progress can't be shown ({error.strerror}), so no run was begun.", err=True)
        raise
    if as_json:
        print_json({**unstructure(result), "directory": str(shown(result.directory))})


def _what_next(directory: Path, unshown: OSError | None) -> str:
    """Return what to do about a run that was interrupted or has failed.

    Args:
        unshown: why its progress couldn't be shown any more, if that is why it was stopped.
    """
    from stackwise_core.engine.loop.beginning import is_finished

    why = "" if unshown is None else f"Progress can't be shown ({unshown.strerror}), so the run was stopped. "
    if not directory.exists():
        return f"{why}No step was taken, and nothing is left of the run."
    named = shlex.quote(str(shown(directory)))
    if is_finished(directory):
        return f'{why}All of it is trained: "stackwise evaluate {named}" measures it.'
    return f'{why}"stackwise run {named}" resumes this run.'
