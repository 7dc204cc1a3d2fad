"""The working directory while a plugin's code is imported: relative paths of whoever imports it stay right."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def kept_working_directory() -> Iterator[None]:
    """Restore the working directory at the end, if the code within has changed it."""
    try:
        before = os.open(os.curdir, os.O_RDONLY)
    except OSError:  # it was deleted, or may not be read
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.fchdir(before)
        os.close(before)
