"""Estimate of what a phase writes to the store of its boundaries, and reads from stores."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from stackwise_core.engine.phases.phase_boundaries import (
    boundaries_by_draw,
    boundary_layout,
    follows_from_below,
    sharing_its_store,
    stored_by_draw,
)
from stackwise_core.engine.phases.phase_steps import sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase


@frozen
class Traffic:
    """Bytes of entries that a phase moves."""

    written: int
    read: int
    """Bytes that its steps read, and those of the boundary below."""


def store_traffic(phase: Phase, before: Sequence[Phase], tokens: int, setup: Setup) -> Traffic:
    """Estimate what a phase writes and reads with a cache that has room for all.

    Args:
        tokens: that its training steps pass, in all.
    """
    order, size = sample_order(setup), boundary_layout(phase, setup).bytes_per_entry
    computed = boundaries_by_draw(phase, order, cached=True)
    for sharing in sharing_its_store((*before, phase), setup)[:-1]:
        computed -= boundaries_by_draw(sharing, order, cached=True)
    below = computed & stored_by_draw(before, setup) if follows_from_below(phase, before, setup) else {}
    read = tokens // setup.spec.seq_len + sum(below.values())
    return Traffic(computed.total() * size, read * size)
