"""Settings of the C library's allocator: a step reuses what it freed, and what leaves for good goes to the system.

Blocks above the allocator's threshold are mapped by themselves, faulted in page by page, and unmapped when they are
freed. Below it they come from the heap, where a step finds what the step before has freed. By default the threshold
grows with what was freed, so that a phase's peak depends on what came before; it stays fixed here, at glibc's largest.
Where memory must go back (a streamed stack leaves, a window or a phase ends), ``trim_heap`` returns it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

MAPPED_FROM = 32 << 20
"""Bytes of a block that is mapped by itself: glibc's largest. With 2 MiB each activation would be mapped and faulted in
anew in every step, which takes half of its time (docs/log.md)."""

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
def reuse_freed_memory() -> None:
    """Reuse the memory of freed tensors, and map only the largest by themselves; where the C library can (glibc)."""
    set_option = getattr(_c_library(), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_FROM)
        set_option(M_TRIM_THRESHOLD, HEAP_KEEPS)


def trim_heap() -> None:
    """Return the pages of freed memory, which the C library would otherwise keep for later."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)
