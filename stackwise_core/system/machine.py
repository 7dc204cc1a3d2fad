"""Memory and processors that this process may use: the machine's, or what limits leave of them."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
from attrs import frozen

from stackwise_core.system.control_groups import memory_limits, processor_quota

ROOT = Path("/")
"""Folder that has ``proc`` and ``sys``."""


@frozen
class Room:
    """Memory, in bytes, under one limit."""

    total: int
    free: int
    limit: str = ""
    """Name of the limit; empty: the machine itself."""


def memory() -> Room:
    """Return the memory that this process may use: the smallest limit of machine, control groups and ``ulimit``.

    Its ``limit`` is the one that leaves the least.
    """
    host = psutil.virtual_memory()
    rooms = [Room(host.total, host.available), *_limits()]
    least = min(rooms, key=lambda room: room.free)
    return Room(min(room.total for room in rooms), least.free, least.limit)


def _limits() -> Iterator[Room]:
    for group in memory_limits(ROOT):
        yield Room(group.limit, max(0, group.limit - group.used), f"the control group {group.folder}")
    taken = psutil.Process().memory_info()
    # Of the data, only Linux says how much there is.
    for name, option, used in (("RLIMIT_AS", "-v", taken.vms), ("RLIMIT_DATA", "-d", getattr(taken, "data", None))):
        soft = resource.getrlimit(getattr(resource, name))[0] if hasattr(resource, name) else resource.RLIM_INFINITY
        if soft != resource.RLIM_INFINITY and used is not None:
            yield Room(soft, max(0, soft - used), f"ulimit {option}")


def processors() -> int:
    """Return how many processors this process may use: its affinity, or less where a control group has a quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = processor_quota(ROOT)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))
