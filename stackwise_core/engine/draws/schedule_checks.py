"""Checks of a mask schedule's output against its interface: the schedule may be anybody's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.mask_schedule import MaskSchedule

POINTS = 65
"""Number of places at which a schedule is checked before a run."""
ROUNDING = 1e-9
"""Tolerance by which a fraction may miss [0, 1]: no run is to stop at 1.0000000000000002."""


def fractions(schedule: MaskSchedule, progress: Tensor) -> Tensor:
    """Return the mask fraction at each progress, of its shape and dtype.

    Raises:
        ContractError: it isn't that, or one of them is no number in [0, 1].
    """
    given = schedule.fraction(progress)
    if not isinstance(given, Tensor):
        raise ContractError(schedule, f"fraction() gave {_a(given)}, expected a tensor")
    if given.shape != progress.shape or given.dtype != progress.dtype:
        raise ContractError(
            schedule, f"fraction() gave {_described(given)} for {_described(progress)}, expected one of that shape"
        )
    outside = given[~((given >= -ROUNDING) & (given <= 1 + ROUNDING))]  # what is no number is neither
    if len(outside):
        raise ContractError(schedule, f"fraction() gave {outside[0].item():g}, expected numbers in [0, 1]")
    return given


def check_schedule(schedule: MaskSchedule, stretch: tuple[float, float]) -> None:
    """Refuse a schedule whose fractions over a stretch of progress break its contract.

    Raises:
        ContractError: they aren't fractions, rise and fall, or have no slope.
    """
    progress = torch.linspace(*stretch, POINTS, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        given = fractions(schedule, progress)
    steps = given.detach().diff()
    if (steps > 0).any() and (steps < 0).any():
        between = f"{stretch[0]:g} and {stretch[1]:g}"
        raise ContractError(schedule, f"fraction() rises and falls between {between}, expected one or the other")
    if not given.requires_grad:
        raise ContractError(
            schedule, "fraction() can't be differentiated by autograd, expected a slope, which the loss weight is"
        )


def placed(
    schedule: MaskSchedule, tokens: np.ndarray, scorable: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the masked positions, bool [tokens], that a schedule chooses in a sequence; none that isn't scorable.

    Raises:
        ContractError: it gave something else.
    """
    mask = np.asarray(schedule.place(tokens, scorable, fraction, rng))
    if mask.shape != tokens.shape or mask.dtype != np.bool_:
        raise ContractError(
            schedule,
            f"place() gave {mask.dtype} {list(mask.shape)} for {len(tokens)} tokens, expected bool [{len(tokens)}]",
        )
    return mask & scorable


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _a(value: object) -> str:
    return "None" if value is None else f"an object of the type {type(value).__name__}"
