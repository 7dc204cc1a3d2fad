"""``stackwise run``: train what a configuration describes, or go on with a run that broke off."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from stackwise_core.cli.arguments import config_options

if TYPE_CHECKING:
    from stackwise_core.config.model import Config
    from stackwise_core.registry import Registry


@click.command(short_help="Train what FILE describes.")
@config_options
@click.option("--fresh", is_flag=True, help="Begin anew, in a directory of its own, though a run broke off.")
@click.option(
    "--accept-change",
    is_flag=True,
    help="Go on though the configuration has changed, where no weight depends on what has.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to stderr.")
def run(
    file: str, overrides: Sequence[str], plugins: Sequence[str], fresh: bool, accept_change: bool, as_json: bool
) -> None:
    """Train the rack that FILE describes, phase by phase, into a directory of its own.

    If the last run of that name broke off, it goes on with that one, from its last checkpoint. FILE may also be the
    directory of a run.
    """
    from stackwise_core.config.load import load, load_run
    from stackwise_core.errors import UsageError

    if os.path.isdir(file):
        directory: Path | None = Path(file)
        config, registry = load_run(_begun(Path(file)), overrides=overrides, plugins=plugins)
        if fresh:
            directory = None
        elif _is_finished(Path(file)):
            if overrides:
                raise UsageError(f"--set: the run in {file} is finished. With --fresh a new one begins.")
            click.echo(f'{file} is finished. "stackwise evaluate {file}" measures it.', err=as_json)
            if as_json:
                click.echo(json.dumps({"directory": file, "finished": True}))
            return
    else:
        config, registry = load(file, overrides=overrides, plugins=plugins)
        directory = None if fresh else _broken_off(Path(config.run.directory), config.run.name)
    if directory is not None:
        config = _going_on(directory, config, plugins, accept_change)
    _train(config, registry, directory, as_json)


def _train(config: "Config", registry: "Registry", directory: Path | None, as_json: bool) -> None:
    """Train, in the directory of a run that broke off, or in a new one."""
    from stackwise_core.writable import check_writable

    if directory is None:
        check_writable(Path(config.run.directory), "run.directory")

    # torch comes in here, after the configuration was found to be right.
    from cattrs import unstructure

    from stackwise_core.cli.progress import tokenising, watching
    from stackwise_core.runs.directory import Busy, RunDirectory
    from stackwise_core.training.engine import Engine
    from stackwise_core.training.plan import make_plan
    from stackwise_core.training.setup import set_up
    from stackwise_core.training.stopping import Stopping

    console = Console(stderr=as_json)
    with tokenising(console) as progress:
        setup = set_up(config, registry, progress)
        plan = make_plan(setup)
    begun = None if directory is None else RunDirectory(directory)
    engine = None
    try:
        with watching(console) as listener:
            stopping = Stopping(
                lambda: console.print("stopping after this step; once more stops at once", highlight=False)
            )
            with stopping.heeding():
                engine = Engine(setup, plan, registry, listener, begun, stopping)
                result = engine.run()
    except Busy as busy:
        raise Busy(f"{busy} Wait for it, or begin another with --fresh.") from None
    except (KeyboardInterrupt, OSError, MemoryError):
        # Said once the bars are gone, which would draw over it.
        if engine is not None and engine.has_begun:
            click.echo(_what_next(engine.directory), err=True)
        raise
    if as_json:
        click.echo(json.dumps({**unstructure(result), "directory": str(result.directory)}, indent=2))


def _what_next(directory: Path) -> str:
    """What to do about a run that was interrupted or has failed."""
    from stackwise_core.config.source_run import FINISHED

    if (directory / FINISHED).exists():
        return f'All of it is trained: "stackwise evaluate {shlex.quote(str(directory))}" measures it.'
    return f'"stackwise run {shlex.quote(str(directory))}" goes on with this run.'


def _begun(directory: Path) -> Path:
    """A directory that a run was begun in.

    Raises:
        UsageError: none was.
        StackwiseError: its configuration isn't what it began with.
    """
    from stackwise_core.config.source_run import PROGRESS, nearest_run
    from stackwise_core.errors import StackwiseError, UsageError
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
    try:
        manifest.checked("config.toml")
    except StackwiseError as error:
        raise StackwiseError(
            f"{error} It is what the run began with; changes are for --set KEY=VALUE with --accept-change."
        ) from error
    return directory


def _is_finished(directory: Path) -> bool:
    from stackwise_core.config.source_run import FINISHED
    from stackwise_core.runs.manifest import Manifest

    return FINISHED in Manifest(directory)


def _broken_off(parent: Path, name: str) -> Path | None:
    """The last run of a name, if it was begun and hasn't finished."""
    from stackwise_core.config.source_run import PROGRESS
    from stackwise_core.runs.manifest import Manifest

    last, number = None, 1
    while (path := parent / (name if number == 1 else f"{name}-{number}")).is_dir():
        last, number = path, number + 1
    if last is None or PROGRESS not in Manifest(last) or _is_finished(last):
        return None
    return last


def _going_on(directory: Path, config: "Config", plugins: Sequence[str], accept: bool) -> "Config":
    """The configuration that a run goes on with: the one that it began with, but for changes that were accepted.

    Raises:
        UsageError: there are changes, and not all of them may be or were accepted.
    """
    from stackwise_core.config.changes import changes, with_window_of
    from stackwise_core.config.load import load_run
    from stackwise_core.errors import UsageError

    before, _ = load_run(_begun(directory), plugins=plugins)
    changed = changes(before, config)
    if not changed:
        return before
    said = "\n".join(f"  {change}" for change in changed)
    unsound = [change.key for change in changed if not change.sound]
    if unsound:
        one = len(unsound) == 1
        raise UsageError(
            f"{directory} broke off, and began with another configuration:\n{said}\n"
            f"{', '.join(unsound)} {'changes' if one else 'change'} what comes out. Put {'it' if one else 'them'} back "
            "to go on with that run, or begin a new one with --fresh."
        )
    if not accept:
        raise UsageError(
            f"{directory} broke off, and began with another configuration:\n{said}\n"
            "No weight depends on that: --accept-change goes on with it, --fresh begins a new run."
        )
    return with_window_of(before, config) if config.training.window is None else config
