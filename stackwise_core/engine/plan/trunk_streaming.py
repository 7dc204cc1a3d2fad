"""Choice of a trunk's residency: in memory as a whole, or streamed one stack at a time."""

from __future__ import annotations

from stackwise_core.engine.estimates.memory_estimate import Memory
from stackwise_core.engine.phases.phase_steps import largest_window
from stackwise_core.engine.phases.setup import Setup

LOADED_FOR = 32_768
"""Tokens that a stack serves each time it is read, from which on the reading doesn't count: reading and hashing take
some 3 ns a weight, and computing takes 2 operations a weight and token, which is 300 times as long at 100 GFLOP/s."""


def streams_trunk(resident: Memory, setup: Setup) -> bool:
    """Return whether one stack of a trunk is in memory at a time.

    Args:
        resident: what a phase needs with all of it there.
    """
    asked = setup.config.training.trunk_residency
    if asked != "auto":
        return asked == "stream"
    return largest_window(setup) * setup.spec.seq_len >= LOADED_FOR or resident.total > setup.memory_budget
