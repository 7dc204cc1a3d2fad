"""Estimate of the disk space that a phase will need: its boundaries, and the files of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve

from stackwise_core.engine.estimates.parameter_count import trainable_parameters
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


CHECKPOINTS = 3
"""Checkpoints of a phase at most: two that are kept, and the one that is being written."""


def run_bytes(
    phase: Phase, before: Sequence[Phase], on_stacks: Mapping[int, int], setup: Setup, offload: str | None
) -> int:
    """Estimate the most bytes of the run's own files in a phase: masters, quantised trunks, adapters and checkpoints.

    Args:
        on_stacks: how many weights of adapters each stack has.
        offload: where its training state waits, if it does; what is on disk is the checkpoint there.
    """
    spec, formats = setup.spec, setup.implementations.formats
    pairs = spec.stacks if spec.ends == "per_stack" else 1
    total = 4.0 * pairs * (spec.embedding_parameters + spec.head_parameters)
    phases = [*before, phase]
    for stack in spec.given.union(*(each.path for each in phases)):
        total += 4 * (spec.stack_parameters(stack) + on_stacks.get(stack, 0))
        trunk = formats.precision(stack, "trunk")
        if trunk.quantises and any(stack in each.path and stack not in each.trains for each in phases):
            total += trunk.bytes_per_weight * spec.stack_parameters(stack)
    if offload != "disk":
        kept = 2 if offload == "memory" else CHECKPOINTS
        state = 4 + setup.implementations.optimizer.state_bytes
        total += kept * state * trainable_parameters(phase, setup)
    return round(total)
