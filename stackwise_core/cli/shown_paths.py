"""Paths as they are shown: relative to the folder that the command was given in, whatever the working directory is."""

import os
from pathlib import Path

_given_in: list[Path] = []


def note_working_directory() -> None:
    """Remember where a command begins."""
    try:
        _given_in[:] = [Path.cwd()]
    except OSError:  # it was deleted
        _given_in.clear()


def shown(path: Path) -> Path:
    """Return a path relative to the folder in which the command was given, if it is within that."""
    for folder in _given_in:
        if path.is_relative_to(folder) and path != folder:
            return Path(os.path.relpath(path, folder))
    return path
