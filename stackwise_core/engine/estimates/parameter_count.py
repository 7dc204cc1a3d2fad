"""Counts of the parameters of a phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec


def adapter_sizes(pairs: Iterable[tuple[int, str]], setup: Setup) -> dict[int, int]:
    """Count the weights that adapters, given as stack and name, add to each stack."""
    sizes: Counter[int] = Counter()
    for stack, name in pairs:
        sizes[stack] += setup.implementations.formats.adapters[name].size(setup.spec, stack)
    return dict(sizes)


def trainable_parameters(phase: Phase, setup: Setup) -> int:
    """Count the parameters that a phase trains."""
    spec = setup.spec
    count = sum(spec.stack_parameters(stack) for stack in phase.trains)
    # Of the stacks' exit norms only the last one's trains, and only where its stack does.
    count -= spec.d_model * (len(phase.trains) - (phase.exit_norm is not None))
    count += trainable_ends(phase, spec)
    return count + sum(adapter_sizes(phase.adapters, setup).values())


def trainable_ends(phase: Phase, spec: RackSpec) -> int:
    """Count the parameters of embedding and head that a phase trains."""
    return (spec.embedding_parameters if phase.embedding else 0) + (spec.head_parameters if phase.head else 0)


def used_parameters(phase: Phase, on_stacks: Mapping[int, int], spec: RackSpec) -> int:
    """Count the parameters that a phase computes with, and both ends of its path.

    Args:
        on_stacks: how many weights of adapters each stack has.
    """
    stacks = sum(spec.stack_parameters(stack) + on_stacks.get(stack, 0) for stack in phase.path)
    # Nothing reads the exit norms below the last.
    return stacks - spec.d_model * (len(phase.path) - 1) + ends_parameters(phase, spec)


def ends_parameters(phase: Phase, spec: RackSpec) -> int:
    """Count the parameters of the embeddings and heads that are in memory in a phase."""
    ends = len({phase.path[0], phase.path[-1]}) if spec.ends == "per_stack" else 1
    return ends * (spec.embedding_parameters + spec.head_parameters)
