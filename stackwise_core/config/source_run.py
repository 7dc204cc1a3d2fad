"""The run that a rack starts from, read from its plan.json."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
from attrs import asdict, field, frozen

from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.registry.nearest import nearest
from stackwise_core.run_files.names import ADAPTERS, CONFIG, FINISHED, PLAN, PROGRESS
from stackwise_core.run_files.plan_file import PlanFile
from stackwise_core.run_files.progress_file import FinishedFile
from stackwise_core.run_files.records import peek_record


@frozen
class SourceRun:
    """A finished run that another one can start from, or that is used."""

    path: Path
    """The run's directory."""
    plan: PlanFile
    """Its plan."""
    special_ids: Mapping[str, int] = field(factory=dict)
    """``data.special_ids`` of its configuration."""
    vocab_size: int | None = None
    """``rack.vocab_size`` of its configuration, where that is set."""
    has_adapters: bool = False
    """Whether a part of what it learnt is in adapters, not in its full-precision weights."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of each of its stacks."""
        return self.plan.rack.spec.blocks

    @property
    def rack(self) -> dict[str, Any]:
        """Its ``RackSpec`` by field."""
        return asdict(self.plan.rack.spec)

    @property
    def exits(self) -> tuple[int, ...]:
        """Stacks whose exit norms are trained."""
        return self.plan.exits

    @property
    def tokenizer(self) -> str:
        """The fingerprint of its tokenizer in hexadecimal."""
        return self.plan.tokenizer


def read_source_run(path: str | os.PathLike[str]) -> SourceRun:
    """Read the plan in a run's directory.

    Raises:
        UsageError: there is no plan, or no run wrote it.
    """
    directory = Path(path)
    plan = directory / PLAN
    if not os.path.isdir(directory):
        raise UsageError(f"no such directory: {directory}")
    if not os.path.isfile(plan):
        raise UsageError(f"expected the directory of a run, and there is no {PLAN} in {directory}")
    try:
        data = json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{plan} can't be read: {error}") from None
    try:
        content = PlanFile.from_json(data, plan)
    except StackwiseError as error:
        raise UsageError(str(error)) from None
    source = SourceRun(
        directory,
        content,
        **_settings(directory / CONFIG),
        has_adapters=any(path.is_file() for path in (directory / ADAPTERS).glob("*/*/**/*")),
    )
    if not os.path.isfile(directory / FINISHED):
        command = f"stackwise run {shlex.quote(str(directory))}"
        resumes = f'. "{command}" resumes it' if os.path.isfile(directory / PROGRESS) else ""
        raise UsageError(f"the run in {directory} never finished: there is no {FINISHED}{resumes}")
    ending = peek_record(FinishedFile, directory / FINISHED)
    if ending is not None and not ending.weights:
        raise UsageError(f"the run in {directory} kept no weights: checkpoint.save_stacks was false")
    return source


def _settings(config: Path) -> dict[str, Any]:
    """Return settings of a run that another one must have, too; none where the file isn't as a run writes it."""
    try:
        written = tomli.loads(config.read_text(encoding="utf-8"))
        special_ids = {str(name): int(id_) for name, id_ in written["data"].get("special_ids", {}).items()}
        rows = written["rack"].get("vocab_size")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {"special_ids": special_ids, "vocab_size": rows if type(rows) is int else None}


def finished_run(path: str | os.PathLike[str]) -> SourceRun:
    """Read a finished run. Errors name the run that was probably meant."""
    try:
        return read_source_run(path)
    except UsageError as error:
        near = nearest_run(path)
        raise UsageError(f"{error}. Did you mean {near}?" if near else str(error)) from None


def nearest_run(path: str | os.PathLike[str]) -> str | None:
    """Return the run that was probably meant: the only one in a directory, or one beside it with a like name."""
    directory = Path(path)
    if PLAN in _names_in(directory):
        return None
    inside = runs_in(directory)
    if len(inside) == 1:
        return str(directory / inside[0])
    near = nearest(directory.name, runs_in(directory.parent))
    return str(directory.parent / near) if near else None


def runs_in(directory: Path) -> list[str]:
    """Return the names of a directory's runs, finished or not, in alphabetical order."""
    return [name for name in _names_in(directory) if os.path.isfile(directory / name / PLAN)]


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (OSError, ValueError):
        return []
