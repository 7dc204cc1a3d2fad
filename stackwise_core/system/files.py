"""Files that are whole or not there: written beside, synced, renamed, the directory synced."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

from stackwise_core.errors import UsageError
from stackwise_core.system.lacking_calls import CHMOD, SYNC

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Numbers of the errors that say that a disk is full, or one's share of it."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Numbers of the errors that say something of the process, and nothing of the file."""

_UMASK = os.umask(0o077)
os.umask(_UMASK)  # it can't be read without being set


def unreadable(file: Path, error: OSError) -> UsageError:
    """Return the error to raise for a file that the system won't give."""
    return UsageError(f"{file}: expected a file that can be read: {error.strerror or error}")


def limit_of_open_files() -> int:
    """Return how many files this process may have open at a time; -1: as many as it likes."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable: a rename is not until its directory is synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, path: Path) -> None:
    """Make what was written to an open file durable."""
    with SYNC.where_there_is(path):
        os.fsync(descriptor)


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place in one step.

    Raises:
        OSError: it can't be written, as on a full disk; it names the file, which is as it was.
    """
    beside = unfinished(path)
    try:
        write(beside)
        with CHMOD.where_there_is(beside):
            beside.chmod(0o666 & ~_UMASK)  # some writers make files that nobody else may read
        with beside.open("rb+") as file:
            sync_open(file.fileno(), beside)
        os.replace(beside, path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def unfinished(path: Path) -> Path:
    """Return the name by which this process calls a file or a directory until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_abandoned(name: str) -> bool:
    """Return whether this is an ``unfinished`` name whose process no longer runs, or is this one."""
    written = re.fullmatch(r"\..+\.([0-9]+)\.tmp", name)
    if written is None:
        return False
    pid = int(written[1])
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def name_file(error: OSError, path: Path) -> None:
    """Say which file an error is about; the system does when a file is opened, and not when it is written."""
    if error.filename is None and error.errno is not None:
        error.filename = str(path)


def publish_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    publish(path, write)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
