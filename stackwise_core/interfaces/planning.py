"""Helpers for trainer modes: which stacks to build, how their shares divide the budget, and the two usual phases."""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec

Start = Literal["random", "copy", "zero_output"]
"""Beginning of a stack that joins others: see :attr:`Phase.start`."""


def stacks_to_build(rack: RackSpec, mode: str) -> list[int]:
    """List the stacks that don't come from ``rack.init_from``, from the tokens upwards.

    Args:
        mode: the trainer mode's name, for the message.

    Raises:
        UsageError: all of them do.
    """
    stacks = [stack for stack in range(rack.stacks) if stack not in rack.given]
    if not stacks:
        raise UsageError(
            f'trainer mode "{mode}" builds new stacks, and rack.init_from brings all {rack.stacks}. '
            'Raise rack.stacks, or go on with "end_to_end".'
        )
    return stacks


def shares_of(
    shares: Sequence[float], parts: int, budget: float | None = None, *, what: str = "stacks are built"
) -> list[tuple[float, float]]:
    """Divide a budget: return the share of each part, and of those before it, in units of one stack's average budget.

    Args:
        shares: relative sizes, such as [3, 2, 1]; empty for equal ones.
        parts: the number of stacks to build, or of other parts.
        budget: all of it, in the same units. None: a unit a part.
        what: the parts that there are, for the message.

    Raises:
        UsageError: there are more or fewer shares than parts.
    """
    shares = shares or (1.0,) * parts
    if len(shares) != parts:
        raise UsageError(f"trainer_mode.shares has {len(shares)} entries, and {parts} {what}: give each its share.")
    units = parts if budget is None else budget
    sizes = [share * units / sum(shares) for share in shares]
    return list(zip(sizes, accumulate(sizes[:-1], initial=0.0), strict=True))


def named(stacks: Iterable[int]) -> str:
    """Return a phase's name for stacks: ``stack 3``, ``stacks 0-2`` or ``stacks 0, 2``."""
    ordered = sorted(stacks)
    if len(ordered) == 1:
        return f"stack {ordered[0]}"
    in_a_row = ordered[-1] - ordered[0] == len(ordered) - 1
    return f"stacks {ordered[0]}-{ordered[-1]}" if in_a_row else f"stacks {', '.join(map(str, ordered))}"


def joining_phase(
    new: Sequence[int], there: Collection[int], rack: RackSpec, budget: Budget, start: Start, share: dict[str, Any]
) -> Phase:
    """Plan the phase in which a stack, or several, train among frozen ones; the very first brings embedding and head.

    Args:
        new: the stacks that join.
        there: the stacks that were built before them, below, above or between.
        share: its part of the budget, as ``budget.share`` gives it.

    Raises:
        UsageError: several join at once, and the mask schedule gives each a place of its own.
    """
    if len(new) > 1:
        budget.only_over_time("stacks that join together")
    first = not there
    return Phase(
        name=named(new),
        path=sorted([*there, *new]),
        trains=new,
        embedding=first,
        head=first or budget.head == "trains",
        progress=budget.stretch(new[0], rack.stacks, built=len(there)),
        start="random" if first else start,
        copies=copies(new, there) if start == "copy" and there and len(new) > 1 else (),
        **budget.mask_fields,
        **share,
    )


def copies(new: Collection[int], there: Collection[int]) -> list[tuple[int, int]]:
    """Pair stacks that join together with those that they begin as copies of.

    Above all others, or below, they repeat what is there, in its order (G_stack, arXiv 2405.15319). Between others each
    repeats the one below it.
    """
    above, below = min(new) > max(there), max(new) < min(there)
    if above or below:
        ordered, others = sorted(new, reverse=above), sorted(there, reverse=above)
        return sorted((stack, others[place % len(others)]) for place, stack in enumerate(ordered))
    return [(stack, max((each for each in there if each < stack), default=min(there))) for stack in sorted(new)]


def joint_phase(
    rack: RackSpec, budget: Budget, share: dict[str, Any], lr: float = 1.0, name: str = "", *, restores: bool = True
) -> Phase:
    """Plan a phase in which everything trains at once.

    Args:
        share: its part of the budget, as ``budget.share`` gives it.
        lr: factor of all learning rates.
        name: the phase's name, if not ``whole rack``.
        restores: as in ``Phase``.
    """
    return Phase(
        name=name or "whole rack",
        path=range(rack.stacks),
        trains=range(rack.stacks),
        embedding=True,
        head=True,
        restores=restores,
        lr=lr,
        **budget.mask_fields,
        **share,
    )
