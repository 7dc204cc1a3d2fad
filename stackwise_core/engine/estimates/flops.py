"""Estimate of the floating-point operations of a phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stackwise_core.engine.phases.phase_boundaries import (
    boundaries_by_draw,
    follows_from_below,
    sharing_its_store,
    stored_by_draw,
)
from stackwise_core.engine.phases.phase_steps import predicted_share, sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase


def step_flops(
    phase: Phase, on_stacks: Mapping[int, int], tokens: int, setup: Setup, *, offloads: bool = False
) -> float:
    """Estimate the floating-point operations of training.

    A backward pass costs a forward for the input, one more for weights.

    Args:
        on_stacks: how many weights of adapters each stack has.
        offloads: whether what trains is streamed; each stack but the highest runs again for its backward pass then.
    """
    spec, checkpointing = setup.spec, setup.config.training.activation_checkpointing
    total = 0.0
    for stack in phase.live_path:
        again = int(stack != phase.live_path[-1] if offloads else checkpointing)
        total += spec.stack_flops(stack) * tokens * ((3 if stack in phase.trains else 2) + again)
        total += 2 * on_stacks.get(stack, 0) * tokens * ((3 if stack in phase.trains_adapters else 2) + again)
    # A tied head trains with the embedding.
    head_passes = 3 if phase.head or (phase.embedding and spec.tie_embeddings) else 2
    return total + 2 * spec.d_model * spec.vocab_size * tokens * predicted_share(phase, setup) * head_passes


def boundary_flops(
    phase: Phase, before: Sequence[Phase], on_stacks: Mapping[int, int], setup: Setup, *, cached: bool
) -> float:
    """Estimate the floating-point operations of a phase's boundaries, with a cache or without."""
    if not phase.frozen_prefix:
        return 0.0
    spec, order = setup.spec, sample_order(setup)
    computed, from_below = boundaries_by_draw(phase, order, cached=cached), Counter[int]()
    if cached:
        for sharing in sharing_its_store((*before, phase), setup)[:-1]:
            computed -= boundaries_by_draw(sharing, order, cached=True)
        if follows_from_below(phase, before, setup):
            from_below = computed & stored_by_draw(before, setup)

    def a_token(stacks: Iterable[int]) -> int:
        return sum(spec.stack_flops(stack) + 2 * on_stacks.get(stack, 0) for stack in stacks)

    whole = a_token(phase.frozen_prefix) * (computed.total() - from_below.total())
    if from_below:
        whole += a_token(phase.frozen_prefix[len(before[-1].frozen_prefix) :]) * from_below.total()
    return float(spec.seq_len * whole)
