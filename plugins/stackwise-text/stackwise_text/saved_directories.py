"""Directories that the library ``datasets`` saved with ``save_to_disk``: their Arrow files, and their splits."""

import json
import os
from pathlib import Path
from typing import Any

from stackwise_core.errors import UsageError
from stackwise_text.files import CorpusFile

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""Files that ``save_to_disk`` writes: the first two beside a data set, the last above several."""


def is_saved(directory: Path) -> bool:
    """Return whether a ``datasets.Dataset`` was saved in this directory."""
    return (directory / STATE).is_file() and (directory / INFO).is_file()


def is_saved_dict(directory: Path) -> bool:
    """Return whether a ``DatasetDict`` was saved in this directory: one subdirectory a split."""
    return (directory / SPLITS).is_file()


def saved_splits(directory: Path) -> list[str]:
    """Return the names of a saved ``DatasetDict``'s splits, in its own order.

    Raises:
        UsageError: the list of them isn't as ``datasets`` writes it.
    """
    names = _json(directory / SPLITS).get("splits")
    if not isinstance(names, list) or not all(_is_plain(name) for name in names):
        raise UsageError(f"{directory / SPLITS}: expected a list of names, splits, as datasets writes it")
    return names


def saved_files(directory: Path) -> list[CorpusFile]:
    """Return the Arrow files of a saved data set, in its own order.

    Raises:
        UsageError: a file isn't there, or the list of them isn't as ``datasets`` writes it.
    """
    listed = _json(directory / STATE).get("_data_files")
    if not listed or not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UsageError(f"{directory / STATE}: expected a list _data_files of file names, as datasets writes it")
    found = []
    for entry in listed:
        name = entry.get("filename")
        if not _is_plain(name):
            raise UsageError(f"{directory / STATE}: expected the names of files beside it, found {str(name)[:80]!r}")
        if not (directory / name).is_file():
            raise UsageError(f"{directory / name}: {STATE} names it, but nothing is there; was all of it copied?")
        found.append(CorpusFile(directory / name, "arrow"))
    return found


def _is_plain(name: Any) -> bool:
    """Return whether this names a file in the same directory, without a path."""
    return isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..") and "\0" not in name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: expected JSON as the library datasets writes it: {error!s:.200}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected JSON as the library datasets writes it, found no object")
    return content
