"""Files kept open after they were last read: opening one takes as long as reading a small entry."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from stackwise_core.system.files import limit_of_open_files

MOST = 64
"""A process may open some 1000 by default, and a run reads from two stores at a time."""

SHARE = 8
"""Divisor of a low limit of open files: a store keeps at most one in so many of them."""


def most_open_files() -> int:
    """Return how many files a store keeps open."""
    limit = limit_of_open_files()
    return MOST if limit < 0 else max(1, min(MOST, limit // SHARE))


class OpenFiles:
    """Descriptors of files by their paths, the least recently used given up first."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._most = most_open_files()

    def descriptor(self, path: Path) -> int:
        """Return the descriptor of a file, to read from until another one is asked for.

        Raises:
            FileNotFoundError: it isn't there any more.
        """
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= self._most:
                self._files.popitem(last=False)[1].close()
            file = self._files[path] = path.open("rb", buffering=0)
        else:
            self._files.move_to_end(path)
        return file.fileno()

    def close_deleted(self) -> None:
        """Close files that were deleted since they were opened, so that the disk has their room again."""
        for path, file in list(self._files.items()):
            if not os.fstat(file.fileno()).st_nlink:
                self.close(path)

    def close(self, path: Path) -> None:
        """Close a file if it is open."""
        file = self._files.pop(path, None)
        if file is not None:
            file.close()

    def close_all(self) -> None:
        """Close what is open."""
        for path in list(self._files):
            self.close(path)
