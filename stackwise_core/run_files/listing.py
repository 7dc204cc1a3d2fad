"""The runs of a directory, a few facts of each: finished, unfinished and damaged ones, and what is no run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from attrs import frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.printable import printable
from stackwise_core.run_files.busy import is_worked_on, locked_files
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import MANIFEST, METRICS, PLAN
from stackwise_core.run_files.reading import read_run
from stackwise_core.run_files.run import Likelihood

State = Literal["finished", "running", "unfinished", "damaged", "no run"]


@frozen
class ListedRun:
    """A row of the list of runs."""

    path: Path
    state: State
    bytes: int
    """Size of all its files."""
    changed: float | None
    """Time of the run's last write, in seconds since 1970."""
    phases_done: int = 0
    phases: int = 0
    """Number of planned phases; 0 where it is unknown."""
    likelihood: Likelihood | None = None
    """The whole rack's."""
    problems: tuple[str, ...] = ()
    """Reasons for being damaged. Checksums of weights aren't among them: ``verify`` compares those."""


def list_runs(directory: Path) -> list[ListedRun]:
    """Return the directories in a directory of runs, the last changed first; hidden ones aren't runs.

    Raises:
        OSError: the directory can't be read.
    """
    locked = locked_files()
    runs = [_listed(path, locked) for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(runs, key=lambda run: (-(run.changed or 0), run.path.name))


def _listed(path: Path, locked: frozenset[str]) -> ListedRun:
    try:
        size = _bytes_in(path)
        if not any(os.path.lexists(path / name) for name in (MANIFEST, PLAN)):
            return ListedRun(path, "no run", size, path.stat().st_mtime)
        run = read_run(path, curves=False)
        state: State = "finished" if run.finished else "unfinished"
        # What is missing of the measurements is a gap of the report, and no damage to the run.
        problems = _missing(path) + [gap for gap in run.gaps if not gap.startswith(f"{METRICS}: ")]
        if is_worked_on(path, locked):
            state, problems = "running", []  # files may have been replaced while they were looked at
        elif problems:
            state = "damaged"
        return ListedRun(
            path,
            state,
            size,
            max(os.lstat(path / name).st_mtime for name in (MANIFEST, METRICS, PLAN) if os.path.lexists(path / name)),
            sum(phase.done for phase in run.phases),
            len(run.phases),
            run.whole,
            tuple(dict.fromkeys(problems)),
        )
    except OSError as error:
        reason = error.strerror or str(error)
        return ListedRun(path, "damaged", 0, None, problems=(printable(f"{error.filename}: {reason}"),))


def _missing(path: Path) -> list[str]:
    """Return what is wrong with files that are gone, or of another size than when they were written."""
    problems = []
    if not os.path.lexists(path / MANIFEST):
        return [f"{MANIFEST}: missing"]
    try:
        manifest = Manifest(path)
    except StackwiseError:
        return []  # a gap already
    for name in manifest:
        try:
            manifest.present(name)
        except StackwiseError as error:
            problems.append(printable(str(error).removeprefix(f"{path}{os.sep}").rstrip(".")))
    return problems


def _bytes_in(directory: Path) -> int:
    """Return the size of all files in a directory; one that is deleted meanwhile doesn't count."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return size
