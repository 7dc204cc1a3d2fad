"""The run that a rack starts from, read from its plan.json."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
from attrs import field, frozen

from stackwise_core.config.words import a, found, shown
from stackwise_core.errors import UsageError
from stackwise_core.registry.nearest import nearest
from stackwise_core.run_files.names import ADAPTERS, CONFIG, FINISHED, PLAN, PROGRESS

_RACK: dict[str, type] = {
    "d_model": int,
    "n_heads": int,
    "n_kv_heads": int,
    "d_ff": int,
    "attention": str,
    "tie_embeddings": bool,
    "rope_theta": float,
    "norm_eps": float,
}


@frozen
class SourceRun:
    """The run that a rack starts from: shape and tokenizer of its rack."""

    path: Path
    """The run's directory."""
    blocks: tuple[int, ...]
    """Blocks of each of its stacks."""
    rack: dict[str, Any]
    """Its ``RackSpec`` as JSON."""
    exits: tuple[int, ...]
    """Stacks whose exit norms are trained."""
    tokenizer: str
    """The fingerprint of its tokenizer in hexadecimal."""
    special_ids: Mapping[str, int] = field(factory=dict)
    """``data.special_ids`` of its configuration."""
    vocab_size: int | None = None
    """``rack.vocab_size`` of its configuration, where that is set."""
    has_adapters: bool = False
    """Whether a part of what it learnt is in adapters, not in its full-precision weights."""


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
    rack = _entry(plan, data, "rack", dict)
    for key, kind in _RACK.items():
        _entry(plan, data, f"rack.{key}", kind)
    source = SourceRun(
        path=directory,
        blocks=_whole_numbers(plan, data, "rack.blocks", at_least=1, fewest=1),
        rack=rack,
        exits=_whole_numbers(plan, data, "exits", at_least=0, fewest=0),
        tokenizer=_entry(plan, data, "tokenizer", str),
        **_settings(directory / CONFIG),
        has_adapters=any(path.is_file() for path in (directory / ADAPTERS).glob("*/*/**/*")),
    )
    if not os.path.isfile(directory / FINISHED):
        command = f"stackwise run {shlex.quote(str(directory))}"
        resumes = f'. "{command}" resumes it' if os.path.isfile(directory / PROGRESS) else ""
        raise UsageError(f"the run in {directory} never finished: there is no {FINISHED}{resumes}")
    if not _keeps_weights(directory / FINISHED):
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


def _keeps_weights(finished: Path) -> bool:
    """Return whether a finished run still has its weights."""
    try:
        ending = json.loads(finished.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # who reads the file for what is in it says what is wrong
    return not isinstance(ending, dict) or ending.get("weights", True) is not False


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


def _entry(plan: Path, data: Any, key: str, kind: type) -> Any:
    """Return the value of a dotted key. It must have exactly this type, but an integer is also a number."""
    value = data
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise UsageError(f"{plan}: expected {key} to be {a(kind)}, found {found(value)}")


def _whole_numbers(plan: Path, data: Any, key: str, *, at_least: int, fewest: int) -> tuple[int, ...]:
    values = _entry(plan, data, key, list)
    if len(values) < fewest or not all(type(value) is int and value >= at_least for value in values):
        raise UsageError(f"{plan}: expected {key} to be whole numbers of {at_least} or more, found {shown(values)}")
    return tuple(values)
