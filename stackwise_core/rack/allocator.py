"""Freed memory goes back to the system, so that what a process holds is what it uses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """The C library's ``malloc_trim``; None where it has none."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None


def give_back() -> None:
    """Return the pages of freed memory, which the C library would otherwise keep for later."""
    trim = _trim()
    if trim is not None:
        trim(0)
