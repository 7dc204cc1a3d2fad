"""TensorBoard's event files: one folder a phase, each step once, even where a run was killed and resumed.

Events are framed and encoded by tensorboard itself. The files are opened here, because its own writer has a thread, so
that an error comes late and from nowhere, and names files by the clock, by which a later file may come first.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from stackwise_core.system.files import name_file

_STEM = "events.out.tfevents."
_LONGEST_NAME = 80


class EventFiles:
    """Writer of scalars into a directory that ``tensorboard --logdir`` reads.

    Each is in the file as soon as it is written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: FileIO | None = None
        self._next: tuple[str, int] | None = None

    def begin(self, folder: str, step: int) -> None:
        """Start a folder, TensorBoard's "run": all that is written from now on belongs to it.

        Args:
            step: what an earlier process wrote there of this step, and of later ones, no longer counts.
        """
        self._next = folder, step

    def _open(self, folder: str, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.close()
        path = self._directory / (re.sub(r"[^\w ,.-]", "_", folder).strip(". ")[:_LONGEST_NAME] or "_")
        for each in (self._directory, path):
            if each.is_symlink():
                raise OSError(errno.ELOOP, "a link, expected a directory", str(each))
            each.mkdir(parents=True, exist_ok=True)
        self._file = _next_file(path)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step by their names.

        Raises:
            OSError: the disk is full, the file was deleted, or the folder is a link, which could lead anywhere.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._next is not None:
            self._open(*self._next)
            self._next = None
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _write(self, event: object) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None
        path = Path(os.fsdecode(self._file.name))
        if not os.fstat(self._file.fileno()).st_nlink:  # the system would take what nobody will ever read
            raise OSError(errno.ENOENT, "deleted while the run writes to it", str(path))
        try:
            RecordWriter(_Whole(self._file)).write(event.SerializeToString())  # type: ignore[attr-defined]
        except OSError as error:
            name_file(error, path)
            raise

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()


class _Whole:
    """File that writes all of a record or fails: on a nearly full disk a plain write takes a part."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, record: bytes) -> None:
        while record:
            record = record[self._file.write(record) :]


def _next_file(folder: Path) -> FileIO:
    """Create a new file that TensorBoard reads after those that are there: it orders them by their names."""
    numbers = [int(path.name.split(".")[3]) for path in folder.glob(f"{_STEM}[0-9]*.stackwise")]
    path = folder / f"{_STEM}{max(numbers, default=0) + 1:010d}.stackwise"
    return FileIO(path, "x")
