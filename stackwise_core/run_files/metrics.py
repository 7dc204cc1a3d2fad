"""metrics.jsonl: one JSON object a line, there for others as soon as it is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType

from stackwise_core.system.files import name_file, sync_open


def _not_through_a_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


class Metrics:
    """Writer that appends measurements to a file.

    Numbers that aren't finite are text, as JSON has no number for them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A link in a directory of somebody else's could lead to any file.
        self._file = open(path, "ab", buffering=0, opener=_not_through_a_link)  # noqa: SIM115

    def write(self, kind: str, **values: object) -> None:
        """Append a line of this kind.

        Raises:
            OSError: the disk is full, or can't be written to.
        """
        finite = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = (json.dumps({"kind": kind, **finite}) + "\n").encode()
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
        except OSError as error:
            name_file(error, self._path)
            raise

    def settle(self) -> int:
        """Make durable what was written, and return the file's size in bytes."""
        sync_open(self._file.fileno(), self._path)
        return os.fstat(self._file.fileno()).st_size

    def cut_back(self, size: int) -> None:
        """Truncate the file to a size that ``settle`` returned."""
        if os.fstat(self._file.fileno()).st_size > size:
            self._file.truncate(size)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
