"""Detection of a process that works on a run, without taking the run's lock: that would get in the process's way."""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = Path("/proc/locks")


def locked_files() -> frozenset[str]:
    """Return what is locked on this machine, as ``/proc/locks`` writes it: device and inode. Nothing where it isn't."""
    try:
        lines = LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    # 1: FLOCK  ADVISORY  WRITE 11973 fe:00:2146473 0 EOF; one that waits has "->" before its kind.
    return frozenset(line.split()[5] for line in lines if "->" not in line and len(line.split()) > 5)


def is_worked_on(directory: Path, locked: frozenset[str]) -> bool:
    """Return whether a process holds the lock of a run's directory.

    Args:
        locked: from ``locked_files``.

    Raises:
        OSError: the directory is gone.
    """
    status = directory.stat()
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}" in locked
