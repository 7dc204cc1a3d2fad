"""Peaks of a device, as large products and copies reach them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the product."""
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes of the copy, which no cache holds."""
REPEATS = 7


def matmul_peak(
    device: str, dtype: torch.dtype = torch.bfloat16, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return floating-point operations a second of a large product."""
    size = PRODUCT[device]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: one @ other, device, clock)


def copy_peak(device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return bytes copied a second, each counted once."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return source.nbytes / _seconds(lambda: target.copy_(source), device, clock)


def _seconds(work: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Return the median time, after a first time that doesn't count."""
    taken = []
    for _ in range(REPEATS + 1):
        began = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - began)
    return statistics.median(taken[1:])
