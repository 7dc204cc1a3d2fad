"""Hashes of a directory's contents, to compare it with."""

import hashlib
from pathlib import Path


def hashes(directory: Path) -> dict[str, str]:
    """A hash of every file below it, by its path there."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }
