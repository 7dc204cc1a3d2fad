"""Hashes of files' contents, remembered from run to run, so that what didn't change isn't read again.

A file is taken for unchanged as git does it: path, size, times of change and inode are as they were. A change can leave
all of these as they are only while its own time stamp is the one that was noted. So what was changed just before it was
hashed isn't remembered, but hashed again in the next run.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from attrs import define, field, frozen
from xxhash import xxh3_128

from stackwise_core.errors import StackwiseError
from stackwise_core.system.files import publish_text

SETTLED_AFTER = 2_000_000_000
"""Nanoseconds after which a file can't change with the same time stamp: the coarsest clock of a file system, FAT's."""

Stamp = tuple[int, int, int, int]
_log = logging.getLogger(__name__)


@frozen
class _Known:
    stamp: Stamp
    digest: str
    """xxh3-128 of all bytes, in hexadecimal."""
    settled: bool
    """Whether the stamp would tell of any change."""


def stamp_of(path: Path) -> Stamp:
    """Return what tells one state of a file from another: size, nanoseconds of both times of change, inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@define
class ContentIndex:
    """Index of the hashes of some files, and the file that keeps it."""

    path: Path
    _known: dict[str, _Known] = field(factory=dict, init=False)
    _on_disk: dict[str, list[object]] = field(factory=dict, init=False)

    @classmethod
    def open(cls, path: Path) -> "ContentIndex":
        """Read an index; one that isn't there, or is damaged, knows nothing."""
        index = cls(path)
        try:
            content = json.loads(path.read_bytes())
            files = content["files"]
            if content["xxh3_128"] == _checksum(files):
                index._known = {name: _Known(tuple(stamp), digest, True) for name, (*stamp, digest) in files.items()}
                index._on_disk = files
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.debug("%s can't be used: %s", path, error)
        return index

    def hash_all(self, paths: Sequence[Path]) -> list[str]:
        """Return the hash of each file, in order; those that may have changed are read. Others are forgotten.

        Raises:
            StackwiseError: a file changed while it was read.
            OSError: a file can't be read.
        """
        before, self._known = self._known, {}
        for path in paths:
            name = os.path.abspath(path)
            known = before.get(name)
            if known is None or known.stamp != stamp_of(path):
                known = _read(path)
            self._known[name] = known
        return [self._known[os.path.abspath(path)].digest for path in paths]

    def changed(self) -> str | None:
        """Return the first file whose content differs from its hash; None if there is none."""
        for name, known in self._known.items():
            try:
                same = known.settled and stamp_of(Path(name)) == known.stamp
                if not same and _read(Path(name)).digest != known.digest:
                    return name
            except FileNotFoundError:
                return name
        return None

    def save(self) -> None:
        """Save the index for the next run. Where it can't be written the next run reads all files, and is as right."""
        files = {name: [*known.stamp, known.digest] for name, known in self._known.items() if known.settled}
        if files == self._on_disk:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            publish_text(self.path, json.dumps({"xxh3_128": _checksum(files), "files": files}))
        except OSError as error:
            _log.debug("%s can't be written: %s", self.path, error)


def _read(path: Path) -> _Known:
    now = time.time_ns()
    before = stamp_of(path)
    digest = xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if stamp_of(path) != before:
        raise StackwiseError(f"{path}: the file changed while it was being read; run again when it is finished")
    return _Known(before, digest.hexdigest(), settled=max(before[1], before[2]) < now - SETTLED_AFTER)


def _checksum(files: object) -> str:
    return xxh3_128(json.dumps(files, sort_keys=True).encode()).hexdigest()
