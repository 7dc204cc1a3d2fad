"""Number of threads that torch computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stackwise_core.system.machine import processors

SAID_OUTSIDE = "OMP_NUM_THREADS"


@contextmanager
def computing_threads(asked: int | None) -> Iterator[None]:
    """Compute with so many torch threads, and restore the number afterwards.

    Args:
        asked: ``run.threads``; None: as many as it has, and without ``OMP_NUM_THREADS`` no more than the processors
            that this process may use: torch knows of no quota.
    """
    before = torch.get_num_threads()
    count = asked or (before if SAID_OUTSIDE in os.environ else min(before, processors()))
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
