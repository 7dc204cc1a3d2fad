"""Calls that some file systems lack, as network and FUSE ones do.

The program works without those that aren't essential.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Numbers of the errors by which a file system says that it lacks a call."""

_log = logging.getLogger(__name__)
_said: set[tuple[str, int]] = set()
"""Calls that were warned of, and the file systems that lack them."""


@frozen
class Call:
    """A call that can be done without."""

    name: str
    lost: str
    """The loss where the call is missing, in words."""
    errors: frozenset[int] = UNSUPPORTED

    @contextmanager
    def where_there_is(self, path: Path) -> Iterator[None]:
        """Ignore the failure of the call in here where the file system of a path lacks it; warn once."""
        try:
            yield
        except OSError as error:
            if error.errno not in self.errors:
                raise
            self._warn(path, error)

    def _warn(self, path: Path, error: OSError) -> None:
        known = self.name, os.stat(path).st_dev
        if known not in _said:
            _said.add(known)
            _log.warning(
                "warning: %s: this file system can't %s (%s): %s", path, self.name, error.strerror or error, self.lost
            )


SYNC = Call("sync files or directories", "what was written last may be gone after a power failure.")
CHMOD = Call(
    "change permissions",
    "files keep those that it gave them, whatever the umask.",
    UNSUPPORTED | {errno.EPERM, errno.EACCES},
)
LOCK = Call(
    "lock a directory",
    "nothing keeps a second process from working on this run at the same time. See to it that none does.",
    UNSUPPORTED | {errno.ENOLCK, errno.EBADF},  # NFS locks only what is open for writing, which a directory never is
)
MAP = Call("map files into memory", "tokens are read into memory as a whole.", UNSUPPORTED | {errno.ENODEV})
