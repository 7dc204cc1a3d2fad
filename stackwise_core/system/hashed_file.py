"""A file that is hashed while it is written, so that its checksum needs no reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

HASHED_BESIDE = 1 << 16
"""Bytes from which a piece is hashed by another thread while it is written."""


class HashedFile:
    """A new file. Each piece is hashed by a second thread while the system takes it."""

    def __init__(self, file: BinaryIO, hashing: ThreadPoolExecutor) -> None:
        self._file, self._hashing, self._digest = file, hashing, hashlib.sha256()

    def write(self, piece: bytes | memoryview) -> None:
        """Write a piece, and hash it.

        Raises:
            OSError: it can't be written.
        """
        if len(piece) < HASHED_BESIDE:
            self._digest.update(piece)
            self._file.write(piece)
            return
        hashed = self._hashing.submit(self._digest.update, piece)
        try:
            self._file.write(piece)
        finally:
            hashed.result()

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """Open a new file, or an old one without its content.

    Raises:
        OSError: it can't be written.
    """
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        yield HashedFile(file, hashing)


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file, and return the SHA-256 of what was copied, in hexadecimal.

    Raises:
        OSError: one can't be read, or the other not be written.
    """
    with source.open("rb") as file, hashed_file(target) as copy:
        while piece := file.read(1 << 20):
            copy.write(piece)
        return copy.sha256
