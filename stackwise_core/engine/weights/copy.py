"""A copy of a finished run, with another configuration and in part other files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import evolve

from stackwise_core.config.model import Config, RunConfig
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.ending import read_ending
from stackwise_core.engine.weights.kept_files import write_config
from stackwise_core.errors import UsageError
from stackwise_core.run_files.names import CONFIG, FINISHED, PROGRESS, TOKENIZER
from stackwise_core.run_files.records import as_json

MADE_ANEW = (CONFIG, PROGRESS, FINISHED)


def copy_run(
    source: RunDirectory,
    target: Path,
    config: Config,
    change: Callable[[RunDirectory], None],
    *,
    active: Sequence[int] | None = None,
) -> RunDirectory:
    """Copy a run's files, all but the frozen stacks that its masters were quantised to.

    Args:
        target: a directory that isn't there yet. It is deleted again where anything goes wrong.
        config: of the copy; its name and directory become the target's.
        change: what else is done to the copy before it counts as a finished run.
        active: stacks that are at the active precision, where it isn't those of the source: the ones that trained last.

    Raises:
        UsageError: the target is there already, or can't be a run's name.
        StackwiseError: a file is missing or damaged.
    """
    run = _called(config.run, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.mkdir()
    except FileExistsError:
        raise UsageError(f"{target} is there already. Choose another directory with --to.") from None
    try:
        copy = RunDirectory(target)
        source.manifest.checked(CONFIG)  # the files are copied as those of the run that it describes
        for name in source.manifest:
            if name not in MADE_ANEW and not name.startswith("trunk/"):
                copy.copy(name, source)
        known = source.manifest.about(CONFIG).get("contents")
        known = known if isinstance(known, dict) else {}
        write_config(copy, evolve(config, run=run), own_tokenizer=copy.has(TOKENIZER), contents=known)
        change(copy)
        with copy.together():
            copy.copy(PROGRESS, source)
            finished = read_ending(source)
            ending = finished if active is None else evolve(finished, active=tuple(active))
            copy.write_json(FINISHED, as_json(ending))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return copy


def beside(run: Path, suffix: str) -> Path:
    """Return the directory ``RUN-SUFFIX``."""
    named = run if run.name not in ("", "..") else Path(os.path.abspath(run))
    return named.with_name(f"{named.name}-{suffix}")


def _called(run: RunConfig, target: Path) -> RunConfig:
    try:
        return evolve(run, name=target.name, directory=str(target.parent.absolute()))
    except ValueError as error:
        raise UsageError(f"{target} can't be a run's directory: {error}") from None
