"""A plugin's code, kept apart while it is imported and asked."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from stackwise_core.system.process_state import preserved_state


@contextmanager
def foreign_code() -> Iterator[None]:
    """Run a plugin's code. Its output goes to stderr, and its changes to the process's state are undone."""
    with preserved_state(), redirect_stdout(sys.stderr or io.StringIO()):
        yield
