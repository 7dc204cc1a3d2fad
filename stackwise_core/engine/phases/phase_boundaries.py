"""Boundaries of a phase: where they are kept, in which shape, how many, and which of them are made already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.phases.phase_steps import first_step, phase_steps, sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.cache_backend import CacheBackend, Layout
from stackwise_core.interfaces.phase import Phase


def cache_of(phase: Phase, setup: Setup) -> CacheBackend | None:
    """Return the backend that a phase's boundaries go to; None where they are held in memory, a window at a time."""
    return None if phase.name in setup.recomputed else _could_keep(phase, setup)


def _could_keep(phase: Phase, setup: Setup) -> CacheBackend | None:
    return setup.implementations.cache if phase.boundaries == "cache" else None


def boundary_layout(phase: Phase, setup: Setup) -> Layout:
    """Return the shape of a phase's boundaries: in the cache's format where one could keep them, else in fp32.

    Whether it does keep them changes no bit.
    """
    cache = _could_keep(phase, setup)
    dtype = "fp32" if cache is None else cache.options.dtype
    return Layout(tokens=setup.config.data.seq_len, d_model=setup.spec.d_model, dtype=dtype)


def made_from_below(phase: Phase, before: Sequence[Phase], setup: Setup) -> bool:
    """Return whether a phase's boundaries are made from those of the phase before."""
    cached = before and cache_of(phase, setup) is not None and cache_of(before[-1], setup) is not None
    return bool(cached) and follows_from_below(phase, before, setup)


def follows_from_below(phase: Phase, before: Sequence[Phase], setup: Setup) -> bool:
    """Return whether a cache would make a phase's boundaries from those of the phase before.

    That takes a shorter trunk, under equal draws.
    """
    below = before[-1] if before else None
    if below is None or not below.frozen_prefix or not phase.frozen_prefix:
        return False
    if phase.boundaries != "cache" or below.boundaries != "cache" or below.name in setup.recomputed:
        return False
    shorter = len(below.frozen_prefix) < len(phase.frozen_prefix)
    same_trunk = phase.frozen_prefix[: len(below.frozen_prefix)] == below.frozen_prefix
    begins = sharing_its_store(before, setup)[0].begins
    return shorter and same_trunk and phase.begins == begins and _draws(phase) == _draws(below)


def same_boundary(phase: Phase, below: Phase | None, setup: Setup) -> bool:
    """Return whether a phase's boundaries are those of the phase before: one trunk, under equal draws, in one store."""
    if below is None or not phase.frozen_prefix or phase.frozen_prefix != below.frozen_prefix:
        return False
    cached = cache_of(phase, setup) is not None and cache_of(below, setup) is not None
    return cached and _draws(phase) == _draws(below)


def sharing_its_store(phases: Sequence[Phase], setup: Setup) -> Sequence[Phase]:
    """Return the last of the phases, and those just before it that have its boundaries in one store with it."""
    place = len(phases) - 1
    while place and same_boundary(phases[place], phases[place - 1], setup):
        place -= 1
    return phases[place:]


def _draws(phase: Phase) -> tuple[object, ...]:
    return (phase.progress, phase.masks, phase.masks_per_sample, phase.weighting)


def boundaries_by_draw(phase: Phase, order: Order, *, cached: bool) -> Counter[int]:
    """Count the boundaries that a phase computes, a whole window at a time: by epoch, or with a cache once a draw."""
    left = phase_steps(phase, order)
    epoch, skipped = order.epoch_of(first_step(phase, order))
    by_draw: Counter[int] = Counter()
    while left > 0:
        for samples, steps in order.window_sizes(epoch):
            passed = min(steps, skipped)
            skipped -= passed
            if steps > passed and left > 0:
                by_draw[phase.draw_number(epoch) if cached else epoch] += samples
                left -= steps - passed
        epoch += 1
    return Counter({draw: min(samples, order.samples) for draw, samples in by_draw.items()})


def stored_by_draw(phases: Sequence[Phase], setup: Setup) -> Counter[int]:
    """Count the boundaries that the store of the last of the phases has in the end, by draw."""
    order, by_draw = sample_order(setup), Counter[int]()
    for sharing in sharing_its_store(phases, setup):
        by_draw |= boundaries_by_draw(sharing, order, cached=True)
    return by_draw
