"""Hierarchical fusion: single stacks, then pairs that train jointly, then fours, and at the end all."""

from collections.abc import Sequence
from typing import Any

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import Start, joining_phase, joint_phase, named, shares_of, stacks_to_build
from stackwise_core.interfaces.rack_spec import RackSpec


def hierarchical(
    rack: RackSpec, budget: Budget, shares: Sequence[float], start: Start, *, restores: bool
) -> list[Phase]:
    """Plan levels, each with groups of stacks that are twice as large as in the level before.

    A group trains jointly on the boundary of the frozen ones below it, from the tokens upwards. The phases of a level
    begin at the same place in the stream of samples and draws, so that one boundary is made from the other.

    Args:
        shares: of the levels; empty for equal ones.
        restores: as in ``Phase``.
    """
    budget.only_over_time('fusion = "hierarchical"')
    order = stacks_to_build(rack, "fused")
    sizes = [1]
    while sizes[-1] < rack.stacks:
        sizes.append(2 * sizes[-1])
    divided = shares_of(shares, len(sizes), len(order), what="levels of stacks train")
    begins, phases = 0.0, list[Phase]()
    for size, (level, _) in zip(sizes, divided, strict=True):
        built = order if size == 1 else range(rack.stacks)
        groups = [[stack] for stack in order] if size == 1 else _groups(rack.stacks, size)
        each = [level * len(group) / len(built) for group in groups]
        for group, share in zip(groups, each, strict=True):
            of_budget = budget.share(share, begins)
            if size == 1:
                phases.append(joining_phase(group, range(group[0]), rack, budget, start, of_budget))
            elif size >= rack.stacks:
                phases.append(joint_phase(rack, budget, of_budget, restores=restores))
            else:
                phases.append(_group_phase(group, size, budget, of_budget, restores=restores))
        begins += max(each)
    return phases


def _groups(stacks: int, size: int) -> list[list[int]]:
    return [list(range(first, min(stacks, first + size))) for first in range(0, stacks, size)]


def _group_phase(group: list[int], size: int, budget: Budget, share: dict[str, Any], *, restores: bool) -> Phase:
    """Plan the phase of a group; that at the tokens trains embedding and head, too."""
    first = group[0] == 0
    return Phase(
        name=f"groups of {size}, {named(group)}",
        path=range(group[-1] + 1),
        trains=group,
        embedding=first,
        head=first or budget.head == "trains",
        restores=restores,
        **budget.mask_fields,
        **share,
    )
