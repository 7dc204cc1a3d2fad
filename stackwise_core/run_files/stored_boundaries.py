"""Records of which boundary each store of a directory holds: ``NAMESPACE.json`` beside the store ``NAMESPACE/``."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from attrs import asdict, evolve, frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import Format, Layout
from stackwise_core.system.files import publish_text, sync

FORMAT = 1
_GET_RID = "Without the file, its store is one that nothing is known of."


@frozen
class StoredBoundary:
    """Record of a store, readable without opening it."""

    namespace: str
    """The name of its directory."""
    run: str
    """The absolute path of the directory of the run that wrote this record; runs may share a directory of stores."""
    phase: str
    """The phase that it was made for."""
    trunk: tuple[int, ...]
    """The stacks below it, one at least, in the order in which they are passed."""
    layout: Layout
    """Layout of its entries."""
    made_of: dict[str, object]
    """The settings that decide its bits, as JSON values: torch's version, the tokenizer's fingerprint, precisions."""


def write_record(directory: Path, boundary: StoredBoundary) -> None:
    """Write the record of a namespace's store, in place of an earlier one; makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, **asdict(boundary)}
    del data["namespace"]  # the file's own name
    publish_text(_record(directory, boundary.namespace), json.dumps(data, indent=2) + "\n")


def read_records(directory: Path) -> list[StoredBoundary]:
    """Read the records in a directory, the shortest trunk first and then by phase.

    There are none where there is no directory.

    Raises:
        StackwiseError: a file is no such record.
    """
    if not directory.is_dir():
        return []
    records = filter(None, map(_read, (path for path in directory.glob("*.json") if is_namespace(path.stem))))
    return sorted(records, key=lambda each: (len(each.trunk), each.phase, each.namespace))


def is_namespace(name: str) -> bool:
    """Return whether a file or directory has the name of a store."""
    return re.fullmatch("[0-9a-f]{32}", name) is not None


def owner(directory: Path, namespace: str) -> str | None:
    """Return the run that a store's record names; None if there is no readable record."""
    try:
        record = _read(_record(directory, namespace))
    except StackwiseError:
        return None
    return None if record is None else record.run


def take_over(directory: Path, earlier: str, run: str) -> None:
    """Write a run that was moved into the records of its stores.

    Args:
        earlier: where it was.
        run: where it is.
    """
    for path in directory.glob("*.json"):
        with suppress(StackwiseError):  # a damaged record is nobody's
            boundary = _read(path) if is_namespace(path.stem) else None
            if boundary is not None and os.path.realpath(boundary.run) == earlier:
                write_record(directory, evolve(boundary, run=run))


def drop_record(directory: Path, namespace: str) -> None:
    """Delete a record, if it is there."""
    with suppress(FileNotFoundError):
        _record(directory, namespace).unlink()
        sync(directory)


def _record(directory: Path, namespace: str) -> Path:
    return directory / f"{namespace}.json"


def _read(path: Path) -> StoredBoundary | None:
    """Read a record; None where the run has dropped it since it was found."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["format"]
        trunk, layout, made_of = data["trunk"], Layout(**data["layout"]), data["made_of"]
        fine = (
            type(data["run"]) is str
            and type(data["phase"]) is str
            and _are_whole(trunk, least=0)
            and trunk
            and _are_whole([layout.tokens, layout.d_model], least=1)
            and layout.dtype in get_args(Format)
            and type(made_of) is dict
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StackwiseError(
            f"{path}: not a boundary's record: {type(error).__name__}: {error!s:.200}. {_GET_RID}"
        ) from error
    if found != FORMAT:
        raise StackwiseError(f"{path}: expected a boundary's record of format {FORMAT}, found format {found!r:.40}")
    if not fine:
        raise StackwiseError(
            f"{path}: not a boundary's record: expected its run, phase, trunk (whole numbers), layout (tokens, "
            f"d_model, dtype) and made_of (a table). {_GET_RID}"
        )
    return StoredBoundary(path.stem, data["run"], data["phase"], tuple(trunk), layout, made_of)


def _are_whole(values: Any, *, least: int) -> bool:
    return type(values) is list and all(type(value) is int and value >= least for value in values)
