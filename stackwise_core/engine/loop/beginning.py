"""Beginning of a run: from a configuration, or from an interrupted run of its name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve, frozen

from stackwise_core.config.changes import changes, with_choices_of
from stackwise_core.config.load import load, load_run
from stackwise_core.config.model import Config
from stackwise_core.config.source_run import nearest_run
from stackwise_core.config.sources import Overrides
from stackwise_core.engine.runs.software import DECISIVE, changed_plugins, plugins_of
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.registry import Registry
from stackwise_core.run_files.kept import Kept
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import CONFIG, ENVIRONMENT, FINISHED, PROGRESS, RESUME, TOKENIZER
from stackwise_core.run_files.progress_file import FinishedFile
from stackwise_core.run_files.records import peek_record
from stackwise_core.run_files.steps import has_step, was_only_begun
from stackwise_core.system.writable import check_writable


class Finished(UsageError):
    """Refusal to resume a run that is done."""


@frozen
class Configuration:
    """A configuration that was found to be right, and the plugins that it was read with."""

    config: Config
    registry: Registry
    plugins: tuple[str, ...] = ()
    """Plugins as ``-p`` gave them."""
    directory: Path | None = None
    """Directory of the run to resume; None: there is none, or it hasn't been looked for."""


def begin(configuration: Configuration, *, fresh: bool = False, accept_change: bool = False) -> Configuration:
    """Find the last run of the configuration's name, which is resumed if it was interrupted. Nothing is written.

    One that took no step holds no name: its directory is begun anew, with this configuration.

    Args:
        fresh: whether a new one is to begin in any case.
        accept_change: whether to resume though keys have changed, where no weight depends on what has, or though
            plugins have within a phase.

    Raises:
        Finished: the run that the configuration is of.
        UsageError: it began with another configuration, and not all that has changed may be or was accepted; or a new
            one can't be written where it should be.
        StackwiseError: its configuration isn't what it began with.
    """
    run, directory = configuration.config.run, None
    if not fresh:
        directory = configuration.directory or interrupted_run(Path(run.directory), run.name)
    if directory is None:
        check_writable(Path(run.directory), "run.directory")
        return evolve(configuration, directory=None)
    if is_finished(directory):
        raise Finished(f"{directory} is finished. A fresh run would begin anew.")
    config = configuration.config
    if has_step(directory):  # of one without, whatever it was to be, this one takes the place
        config = _resumed(directory, configuration, accept_change)
    return evolve(configuration, config=config, directory=directory.absolute())  # the working directory may change


def read(source: str | os.PathLike[str], *, overrides: Overrides = (), plugins: Sequence[str] = ()) -> Configuration:
    """Read a TOML file, or the configuration of the run in a directory.

    Args:
        overrides: as for ``--set``, or values by key.
        plugins: as for ``-p``.

    Raises:
        UsageError: it is neither, or there are mistakes in it.
        StackwiseError: the run's configuration isn't what it began with.
    """
    if not os.path.isdir(source):
        config, registry = load(source, overrides=overrides, plugins=plugins)
        return Configuration(config, registry, tuple(plugins))
    directory = Path(source)
    config, registry = load_run(_begun(directory), overrides=overrides, plugins=plugins)
    return Configuration(config, registry, tuple(plugins), directory)


def is_finished(directory: Path) -> bool:
    """Return whether all of a run is trained and measured."""
    if FINISHED not in Manifest(directory):
        return False
    ending = peek_record(FinishedFile, directory / FINISHED)
    return ending is None or ending.evaluated


def interrupted_run(parent: Path, name: str) -> Path | None:
    """Return the last run of a name, if it was begun and hasn't finished."""
    last, number = None, 1
    while (path := parent / (name if number == 1 else f"{name}-{number}")).is_dir():
        last, number = path, number + 1
    if last is None or is_finished(last):
        return None
    return last if PROGRESS in Manifest(last) or was_only_begun(last) else None


def _begun(directory: Path) -> Path:
    """Return a directory that a run was begun in.

    Raises:
        UsageError: none was.
        StackwiseError: its configuration isn't what it began with.
    """
    manifest = Manifest(directory)
    if PROGRESS not in manifest:
        if any(directory.glob(f"{CONFIG}.*.new")):
            raise UsageError(f"{directory}: this run was stopped before it had begun. Delete it, and start anew.")
        near = nearest_run(directory)
        guess = f". Did you mean {near}?" if near else ""
        raise UsageError(
            f"{directory}: expected a configuration, or the directory of a run; there is no {PROGRESS}{guess}"
        )
    try:
        manifest.checked(CONFIG)
    except StackwiseError as error:
        raise StackwiseError(
            f"{error} It is what the run began with; changes are for --set KEY=VALUE with --accept-change."
        ) from error
    return directory


def _resumed(directory: Path, configuration: Configuration, accept: bool) -> Config:
    """Return the configuration that a run resumes with: the one that it began with, but for changes that were accepted.

    Paths are those of the new one, where they lead to the same.
    """
    config, registry = configuration.config, configuration.registry
    trusted = [Path(file) for file in config.run.plugins]
    before, _ = load_run(_begun(directory), plugins=configuration.plugins, trusted=trusted)
    if os.path.realpath(config.run.directory) == os.path.realpath(directory.parent):  # that is where it was found
        before = evolve(before, run=evolve(before.run, directory=config.run.directory))
    changed = changes(before, config, registry, Kept.of(directory).contents)
    unsound = [change.key for change in changed if not change.sound]
    if unsound:
        one = len(unsound) == 1
        raise UsageError(
            f"{directory} was interrupted, and began with another configuration:\n{_listed(changed)}\n"
            f"{', '.join(unsound)} {'changes' if one else 'change'} what comes out. Put {'it' if one else 'them'} back "
            "to resume that run, or begin a new one with --fresh."
        )
    if changed and not accept:
        raise UsageError(
            f"{directory} was interrupted, and began with another configuration:\n{_listed(changed)}\n"
            "No weight depends on that: --accept-change resumes it, --fresh begins a new run."
        )
    plugins = _plugins_changed_within_a_phase(directory, config, registry)
    if plugins and not accept:
        raise UsageError(
            f"{directory} was interrupted within a phase, which would resume with other code:\n{_listed(plugins)}\n"
            f"Put {'it' if len(plugins) == 1 else 'them'} back, or --accept-change resumes all the same, though what "
            "comes out is neither's; --fresh begins a new run."
        )
    if (directory / TOKENIZER).is_file():  # the run's own copy, which was found to be the same
        config = evolve(config, data=evolve(config.data, tokenizer=before.data.tokenizer))
    return with_choices_of(before, config)


def _listed(changed: Sequence[object]) -> str:
    return "\n".join(f"  {change}" for change in changed)


def _plugins_changed_within_a_phase(directory: Path, config: Config, registry: Registry) -> list[str]:
    """List changes of the plugins that decide numbers, if the run resumes from a checkpoint within a phase.

    Raises:
        StackwiseError: environment.json isn't what was written.
    """
    manifest = Manifest(directory)
    if not any(name.startswith(f"{RESUME}/") for name in manifest):
        return []
    try:
        known = json.loads(manifest.checked(ENVIRONMENT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StackwiseError(f"{directory / ENVIRONMENT}: not JSON: {error!s:.200}") from error
    before = known.get("plugins") if isinstance(known, dict) else None
    return changed_plugins(before, plugins_of(config, registry, DECISIVE))
