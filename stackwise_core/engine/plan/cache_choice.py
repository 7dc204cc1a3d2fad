"""Choice between a cached boundary and one that is computed anew for each window, by measured rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve, frozen

from stackwise_core.engine.estimates.store_traffic import Traffic, store_traffic
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.notes import several
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.speed import Speed, phase_seconds
from stackwise_core.engine.plan.store_rates import StoreRates, measure_store
from stackwise_core.interfaces.phase import Phase
from stackwise_core.options import ByteSize

FORWARD = 0.75
"""Time of a boundary's operations as a share of what they take in training steps: nothing is kept for a backward pass
(docs/benchmarks/cache.md: 0.64 to 0.83)."""
MARGIN, SECONDS = 1.2, 1.0
"""Factor and seconds by which a cache must be slower before it is left alone."""
SLOWEST = StoreRates(50e6, 50e6)
"""Rates of a slow disk: where even these favour a cache, none are measured."""


@frozen
class BoundarySeconds:
    """Estimated time that a phase's boundaries take, beyond its steps."""

    cached: float
    recomputed: float

    @property
    def favour_recomputing(self) -> bool:
        """Whether a cache is slower, clearly and by more than an estimate is worth."""
        return self.cached > MARGIN * self.recomputed and self.cached > self.recomputed + SECONDS


def boundary_seconds(
    planned: PhasePlan, before: Sequence[Phase], setup: Setup, speed: Speed, rates: StoreRates
) -> BoundarySeconds:
    """Estimate both ways of having the boundary of a phase.

    On a CUDA device a store is written while chunks are computed, and read while steps are: the longer of both counts.
    """
    assert planned.boundary is not None
    traffic: Traffic = store_traffic(planned.phase, before, planned.tokens, setup)
    steps = phase_seconds(evolve(planned, flops=planned.step_flops), setup, speed)
    a_flop = FORWARD * steps / planned.step_flops
    made, recomputed = a_flop * planned.boundary.cached, a_flop * planned.boundary.recomputed
    written, read = traffic.written / rates.written, traffic.read / rates.read
    if setup.device.type == "cuda":
        return BoundarySeconds(max(made, written) + max(0.0, read - steps), recomputed)
    return BoundarySeconds(made + written + read, recomputed)


def phases_to_recompute(
    phases: Sequence[Phase], setup: Setup, speed: Speed, price: Callable[[int, frozenset[str]], PhasePlan]
) -> tuple[frozenset[str], dict[str, BoundarySeconds], StoreRates | None]:
    """Decide for each phase, from the first on: a boundary that isn't kept can't be the next one's beginning.

    Args:
        price: prices the phase at a place where the boundaries of some are computed anew, by their names.

    Returns:
        Names of the phases whose boundaries are computed anew though a cache could keep them; the time of both ways, by
        phase, where it was measured; and the rates, if any were.
    """
    cache, asked = setup.implementations.cache, setup.config.training.boundaries
    could = [phase.name for phase in phases if phase.frozen_prefix and cache_of(phase, setup) is not None]
    if cache is None or asked == "cache":
        return frozenset(), {}, None
    if asked == "recompute":
        return frozenset(could), {}, None
    if cache.options.keep == "rack" or cache.options.directory is not None:
        return frozenset(), {}, None  # it was asked for, to be looked at or to be shared
    found, seconds, rates = frozenset[str](), dict[str, BoundarySeconds](), None
    for place, phase in enumerate(phases):
        if phase.name not in could:
            continue
        planned, before = price(place, found), phases[:place]
        if not boundary_seconds(planned, before, setup, speed, SLOWEST).favour_recomputing:
            continue
        rates = measure_store(cache, boundary_layout(phase, setup), Path(setup.config.run.directory))
        if rates is None:
            return frozenset(), {}, None
        seconds[phase.name] = boundary_seconds(planned, before, setup, speed, rates)
        if seconds[phase.name].favour_recomputing:
            found |= {phase.name}
    return found, seconds, rates


def with_seconds(planned: PhasePlan, seconds: Mapping[str, BoundarySeconds]) -> PhasePlan:
    """Return a phase's plan with the time of both ways, where it was measured."""
    found = seconds.get(planned.phase.name)
    if found is None or planned.boundary is None:
        return planned
    prices = evolve(planned.boundary, cached_seconds=found.cached, recomputed_seconds=found.recomputed)
    return evolve(planned, boundary=prices)


def why_recomputed(planned: Sequence[PhasePlan], rates: StoreRates | None) -> list[str]:
    """Return a note on the phases for which the cache is off, though it could keep their boundaries."""
    off = [each for each in planned if each.recomputed and each.boundary is not None]
    if not off:
        return []
    names = several([each.phase.name for each in off])
    if rates is None:
        return [f'The cache is off in {names}: training.boundaries = "recompute".']
    cached, anew = (
        sum(getattr(each.boundary, name) or 0.0 for each in off) for name in ("cached_seconds", "recomputed_seconds")
    )
    return [
        f"The cache is off in {names}: computing boundaries anew takes about {anew:.2g} s; making, storing and reading "
        f"them {cached:.2g} s ({ByteSize(rates.written)}/s written, {ByteSize(rates.read)}/s read). The bits are the "
        'same; training.boundaries = "cache" keeps it on.'
    ]
