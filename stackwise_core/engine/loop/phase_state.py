"""Progress of a phase: counters, plateau, losses. Saved in checkpoints as JSON."""

from __future__ import annotations

from attrs import Factory, asdict, define

from stackwise_core.engine.boundary.boundary import Boundary, BoundaryCounts
from stackwise_core.engine.evaluation.validation import Plateau
from stackwise_core.engine.loop.loss_course import LossCourse
from stackwise_core.interfaces.cache_backend import CacheStats


@define
class PhaseState:
    """Counters and courses of a phase's steps."""

    step: int = 0
    """Number of the phase's steps that are over, bad ones included."""
    tokens: int = 0
    seconds: float = 0.0
    """Seconds of earlier processes."""
    peak_bytes: int = 0
    """Most bytes held by an earlier process."""
    bad_in_a_row: int = 0
    bad: int = 0
    """Steps that were left out, since a loss or gradient was no finite number."""
    overflows: int = 0
    """Number of steps in a row that a loss scaler left out."""
    spikes: int = 0
    plateau: Plateau = Factory(Plateau)
    course: LossCourse = Factory(LossCourse)
    boundaries: dict[str, int] = Factory(dict)
    """Counts of earlier processes."""


def boundary_counts(boundary: Boundary | None, earlier: dict[str, int]) -> dict[str, int]:
    """Return the counts of a phase's boundaries, those of earlier processes included."""
    counts, losses = (BoundaryCounts(), CacheStats()) if boundary is None else (boundary.counts, boundary.losses)
    found = {**asdict(counts), "evicted": losses.evicted, "damaged": losses.damaged}
    return {name: number + earlier.get(name, 0) for name, number in found.items()}
