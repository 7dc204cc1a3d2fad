"""Estimate of the disk space that the boundaries of a phase will need."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from stackwise_core.engine.phases.phase_boundaries import (
    boundary_layout,
    cache_of,
    made_from_below,
    sharing_its_store,
    stored_by_draw,
)
from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase


def boundary_bytes(phase: Phase, before: Sequence[Phase], setup: Setup) -> int:
    """Estimate the bytes of a phase's boundaries and of the earlier ones kept meanwhile, if nothing is evicted."""
    return sum(_bytes_by_store(phase, before, setup))


def held_bytes(phase: Phase, before: Sequence[Phase], setup: Setup) -> int:
    """Estimate the same within the capacity."""
    cache, sizes = cache_of(phase, setup), _bytes_by_store(phase, before, setup)
    if cache is None or cache.options.capacity is None:
        return sum(sizes)
    if cache.shrinks:
        return min(sum(sizes), cache.options.capacity)
    return sum(min(size, cache.options.capacity) for size in sizes)


def _bytes_by_store(phase: Phase, before: Sequence[Phase], setup: Setup) -> list[int]:
    cache, phases = cache_of(phase, setup), [*before, phase]
    if cache is None or not phase.frozen_prefix:
        return []
    sizes, kept = [store_bytes(phases, setup)], cache.options.phases_kept - 1
    if kept < 1 and made_from_below(phase, before, setup):
        below = store_bytes(before, setup)
        if cache.shrinks:
            # What was read of the one below is given up when the chunk that was made of it is there, a file at a time.
            layout = boundary_layout(phase, setup)
            a_chunk = len(sample_order(setup).chunk(0)) * layout.bytes_per_entry
            below = min(below, max(a_chunk, cache.buffer_bytes(layout)))
        sizes.append(below)
    phases = phases[: -len(sharing_its_store(phases, setup))]
    while phases and kept:
        sharing = sharing_its_store(phases, setup)
        if phases[-1].frozen_prefix and cache_of(phases[-1], setup) is not None:
            sizes.append(store_bytes(phases, setup))
            kept -= 1
        phases = phases[: -len(sharing)]
    return sizes


def store_bytes(phases: Sequence[Phase], setup: Setup) -> int:
    """Estimate the bytes of the store of the last phase, with what others have computed for it.

    It counts as bf16 where the phase has no store.
    """
    layout = boundary_layout(phases[-1], setup)
    layout = layout if cache_of(phases[-1], setup) is not None else evolve(layout, dtype="bf16")
    return stored_by_draw(phases, setup).total() * layout.bytes_per_entry
