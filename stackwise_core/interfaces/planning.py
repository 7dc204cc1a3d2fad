"""Helpers for trainer modes: which stacks to build, how their shares divide the budget, and the two usual phases."""

from collections.abc import Collection, Sequence
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


def shares_of(shares: Sequence[float], stacks: int) -> list[tuple[float, float]]:
    """Divide a budget: return the share of each stack to build, and of those before it, in units of the average.

    Args:
        shares: relative sizes, such as [3, 2, 1]; empty for equal ones.

    Raises:
        UsageError: there are more or fewer shares than stacks.
    """
    shares = shares or (1.0,) * stacks
    if len(shares) != stacks:
        raise UsageError(
            f"trainer_mode.shares has {len(shares)} entries, and {stacks} stacks are built: give each its share."
        )
    parts = [share * stacks / sum(shares) for share in shares]
    return list(zip(parts, accumulate(parts[:-1], initial=0.0), strict=True))


def joining_phase(
    stack: int, there: Collection[int], rack: RackSpec, budget: Budget, start: Start, share: dict[str, Any]
) -> Phase:
    """Plan the phase in which a stack trains among frozen ones; the very first brings embedding and head.

    Args:
        there: the stacks that were built before it, below or above.
        share: its part of the budget, as ``budget.share`` gives it.
    """
    first = not there
    return Phase(
        name=f"stack {stack}",
        path=sorted([*there, stack]),
        trains={stack},
        embedding=first,
        head=first or budget.head == "trains",
        progress=budget.stretch(stack, rack.stacks, built=len(there)),
        start="random" if first else start,
        **budget.mask_fields,
        **share,
    )


def joint_phase(rack: RackSpec, budget: Budget, share: dict[str, Any], lr: float = 1.0, name: str = "") -> Phase:
    """Plan a phase in which everything trains at once.

    Args:
        share: its part of the budget, as ``budget.share`` gives it.
        lr: factor of all learning rates.
        name: the phase's name, if not ``whole rack``.
    """
    return Phase(
        name=name or "whole rack",
        path=range(rack.stacks),
        trains=range(rack.stacks),
        embedding=True,
        head=True,
        lr=lr,
        **budget.mask_fields,
        **share,
    )
