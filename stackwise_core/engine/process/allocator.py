"""Settings of the C library's allocator: freed memory goes back to the system, so a process holds what it uses.

The C library keeps small freed blocks in its heap, and cuts new ones out of it; a large block between them can't leave.
Blocks above its threshold are mapped by themselves and leave when they are freed, but it raises the threshold to the
largest that it has seen (up to 32 MiB), so that a phase's peak depends on what was freed before. It stays fixed here.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

MAPPED_FROM = 2 << 20
"""Bytes of a block that is mapped by itself. With 1 MiB the peak is a little lower and a step takes longer, with 4 MiB
both are as if nothing were set (docs/log.md)."""

HEAP_KEEPS = 64 << 20
"""Bytes that the heap may keep at its end; by default 128 KiB once the threshold is fixed, which every step would
give back and take again."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""


@cache
def _c_library() -> Any:
    """Return the C library; None where it can't be had."""
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None


@cache
def return_freed_memory() -> None:
    """Return large blocks to the system when they are freed, from now on; where the C library can (glibc)."""
    set_option = getattr(_c_library(), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_FROM)
        set_option(M_TRIM_THRESHOLD, HEAP_KEEPS)


def trim_heap() -> None:
    """Return the pages of freed memory, which the C library would otherwise keep for later."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)
