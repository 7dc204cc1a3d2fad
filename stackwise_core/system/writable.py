"""Check that a directory which the configuration names can be written to, before any work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from stackwise_core.errors import UsageError
from stackwise_core.system.files import EXHAUSTED


def check_writable(directory: Path, key: str) -> None:
    """Refuse a directory that files can't be made in; nothing is left behind.

    Args:
        directory: may have to be made first, and so may those above it.
        key: the configuration's name for it.

    Raises:
        UsageError: a file is in its place, or the system won't have it.
    """
    there = directory
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{key} = {directory}: {there} is a file, expected a directory. Name another.")
    try:
        # Permission bits don't tell of a file system that is read-only, and mean nothing to root.
        os.rmdir(tempfile.mkdtemp(prefix=".stackwise-", dir=there))
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise UsageError(
            f"{key} = {directory}: {there} can't be written to ({error.strerror}). Name another directory."
        ) from None
