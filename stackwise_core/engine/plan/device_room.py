"""Room that a plan leaves for boundaries in the memory of a device that has its own."""

from __future__ import annotations

from collections.abc import Sequence

from stackwise_core.engine.phases.phase_boundaries import boundary_layout
from stackwise_core.engine.phases.phase_steps import largest_window
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.options import ByteSize


def device_room(phases: Sequence[PhasePlan], setup: Setup) -> int:
    """Return the bytes of the device's memory that every phase leaves for boundaries; 0 on a CPU, whose memory is one.

    Weights, moments and activations have theirs first; what is left of the memory budget is room.
    """
    if setup.device.type == "cpu":
        return 0
    taken = max(planned.memory.total - planned.memory.boundaries for planned in phases)
    return max(0, setup.memory_budget - taken)


def window_bytes(phases: Sequence[PhasePlan], setup: Setup) -> int:
    """Return the most bytes of a window on its way through a trunk; it has its room before a cache."""
    layouts = [boundary_layout(planned.phase, setup) for planned in phases if planned.phase.frozen_prefix]
    return largest_window(setup) * max((each.bytes_per_entry for each in layouts), default=0)


def cache_room(phases: Sequence[PhasePlan], setup: Setup) -> int:
    """Return the bytes of the device's memory that are left for the stores of a cache."""
    return max(0, device_room(phases, setup) - window_bytes(phases, setup))


def where_the_cache_is(phases: Sequence[PhasePlan], setup: Setup) -> list[str]:
    """Return a note on a cache in memory where the device has its own: how much of it is there, how much isn't."""
    cache = setup.implementations.cache
    if cache is None or cache.durable or setup.device.type == "cpu":
        return []
    most = max((planned.boundary.bytes for planned in phases if planned.boundary is not None), default=0)
    if cache.options.capacity is not None:
        most = min(most, cache.options.capacity)
    cache.device_room = cache_room(phases, setup)
    there = cache.bytes_on_device(most)
    if not most:
        return []
    rest = f", {ByteSize(most - there)} in page-locked host memory" if there < most else ""
    return [f"Of the cache, {ByteSize(there)} are in the device's memory{rest}."]
