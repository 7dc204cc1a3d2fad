"""How the budget in [training] is shared out to phases."""

from typing import Any

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec


def budget(training: TrainingConfig, stacks: float, begins: float = 0.0) -> dict[str, Any]:
    """A phase's ``epochs``, ``steps`` and ``begins``, for what so many stacks would have, after as many before it."""
    if training.steps_per_stack is None:
        return {"epochs": training.epochs_per_stack * stacks, "begins": training.epochs_per_stack * begins}
    # Rounded at both ends, so that phases which follow one another leave no step out.
    begin, end = (round(training.steps_per_stack * at) for at in (begins, begins + stacks))
    return {"steps": max(1, end - begin), "begins": begin}


def shares_of(shares: tuple[float, ...], stacks: int) -> list[float]:
    """The budget of each stack to build, in what one stack has on average.

    Raises:
        UsageError: there are more or fewer shares than stacks.
    """
    if not shares:
        return [1.0] * stacks
    if len(shares) != stacks:
        raise UsageError(
            f"trainer_mode.shares has {len(shares)} entries, and {stacks} stacks are built: give each its share."
        )
    return [share * stacks / sum(shares) for share in shares]


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


def only_over_time(training: TrainingConfig, what: str) -> None:
    """Refuse a mask schedule over depth, for what has phases without a depth of their own.

    Raises:
        UsageError: it runs over depth, or over both.
    """
    if training.noise_over != "time":
        key = "over" if training.over else "time"
        raise UsageError(
            f'training.{key} = "{training.noise_over}" gives each stack a mask fraction or a slice of its own, and '
            f'{what} has no place for that. Use over = "time".'
        )
