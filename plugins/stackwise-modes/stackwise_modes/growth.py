"""Growth of a rack: which stacks join together, one phase after the other."""

from collections.abc import Sequence
from typing import Literal

Growth = Literal["one", "double", "all"]
"""How many stacks join at a time: one, as many as there are, or all that are missing."""


def sizes(begin: int, stacks: int, growth: Growth) -> list[int]:
    """Return how many stacks a rack has in each phase of its growth, from those that it begins with to all."""
    found = [begin]
    while found[-1] < stacks:
        there = found[-1]
        found.append(min(stacks, {"one": there + 1, "double": 2 * max(1, there), "all": stacks}[growth]))
    return found


def joining_in_order(order: Sequence[int], there: int, joined: Sequence[int]) -> list[list[int]]:
    """Return the stacks that join in each phase.

    Args:
        order: in which they are built.
        there: how many the rack has before.
        joined: how many it has in each phase.
    """
    counts = [each - there for each in joined]
    return [sorted(order[begin:end]) for begin, end in zip([0, *counts], counts, strict=False)]


def joining_between(stacks: int, joined: Sequence[int]) -> list[list[int]]:
    """Return the stacks that join in each phase so that each lies among those that are there, as evenly as may be.

    Args:
        stacks: all that the rack will have.
        joined: how many it has in each phase, all in the last.
    """
    there = list(range(stacks))
    joining = []
    for fewer in [*reversed(joined[:-1]), 0]:
        kept = [there[place * len(there) // fewer] for place in range(fewer)]
        joining.append(sorted(set(there) - set(kept)))
        there = kept
    return joining[::-1]
