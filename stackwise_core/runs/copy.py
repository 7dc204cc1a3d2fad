"""A copy of a finished run, with another configuration and in part other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from stackwise_core.config.dump import dump
from stackwise_core.config.model import Config
from stackwise_core.config.source_run import FINISHED
from stackwise_core.errors import UsageError
from stackwise_core.runs.directory import RunDirectory

MADE_ANEW = ("config.toml", FINISHED)


def copy_run(
    source: RunDirectory, target: Path, config: Config, change: Callable[[RunDirectory], None] | None = None
) -> RunDirectory:
    """Copy a run's files, all but the frozen stacks that its masters were quantised to.

    Every stack of the copy is at the precision that it has when it is frozen.

    Args:
        target: a directory that isn't there yet.
        config: of the copy; its name and directory become the target's.
        change: what else is done to the copy before it counts as a finished run.

    Raises:
        UsageError: the target is there already.
        StackwiseError: a file is missing or damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.mkdir()
    except FileExistsError:
        raise UsageError(f"{target} is there already. Choose another directory with --to.") from None
    run = evolve(config.run, name=target.name, directory=str(target.parent.absolute()))
    copy = RunDirectory(target)
    for name in source.manifest:
        if name not in MADE_ANEW and not name.startswith("trunk/"):
            copy.copy(name, source)
    copy.write_text("config.toml", dump(evolve(config, run=run)))
    if change is not None:
        change(copy)
    copy.write_json(FINISHED, {**source.read_json(FINISHED), "active": []})
    return copy
