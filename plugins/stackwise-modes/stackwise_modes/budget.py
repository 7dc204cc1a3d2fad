"""How the budget in [training] is shared out to phases."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec


def budget(training: TrainingConfig, stacks: float, after: float = 0.0, *, anew: bool = False) -> dict[str, Any]:
    """A phase's ``epochs``, ``steps`` and ``begins``.

    Args:
        stacks: it has what so many stacks have on average,
        after: and comes after phases that had as much as so many.
        anew: whether it begins at the first sample and draw again, instead of where those ended.
    """
    if training.steps_per_stack is None:
        return {
            "epochs": training.epochs_per_stack * stacks,
            "begins": 0 if anew else training.epochs_per_stack * after,
        }
    # Rounded at both ends, so that phases which follow one another leave no step out and do none twice.
    begin, end = (math.floor(round(training.steps_per_stack * at, 6) + 0.5) for at in (after, after + stacks))
    return {"steps": max(1, end - begin), "begins": 0 if anew else begin}


def refuse_less_than_a_step(training: TrainingConfig, share: float, cycles: int) -> None:
    """Refuse cycles that are too many for the budget.

    Raises:
        UsageError: a phase would have a share of a step.
    """
    if training.steps_per_stack is not None and training.steps_per_stack * share < 1:
        raise UsageError(
            f"trainer_mode.cycles = {cycles} leaves less than a step to a phase. Lower it, or raise "
            f"training.steps_per_stack = {training.steps_per_stack}."
        )


def shares_of(shares: Sequence[float], stacks: int) -> list[tuple[float, float]]:
    """The budget of each stack to build, and of those before it, in what one stack has on average.

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


def masks(training: TrainingConfig) -> dict[str, Any]:
    """A phase's masks as [training] has them."""
    return {"masks": training.masks, "masks_per_sample": training.masks_per_sample}


def to_build(rack: RackSpec, mode: str) -> list[int]:
    """The stacks that don't come from ``rack.init_from``, from the tokens upwards.

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
