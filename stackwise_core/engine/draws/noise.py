"""Mask fraction and loss weight by progress: a mask schedule, cut into discrete time steps where there are any.

With T time steps a progress in [i/T, (i+1)/T] has the fraction f_i of its step. Under the NELBO weight the step stands
for the mask fractions from f_(i-1) to f_i and so weighs (f_i - f_(i-1)) / f_i: the discrete-time bound of absorbing
diffusion (D3PM, arXiv 2107.03006; MDLM, arXiv 2406.07524, eq. 8), never below the continuous one of equal predictions
that don't get worse with fewer masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.schedule_checks import check_schedule, fractions
from stackwise_core.interfaces.mask_schedule import MaskSchedule


def nelbo_weights(schedule: MaskSchedule, progress: Tensor, stretch: tuple[float, float]) -> Tensor:
    """Compute (b - a) |f'(s)| / f(s) of each progress s [B] in the stretch (a, b); 0 where nothing is ever masked."""
    with torch.enable_grad():
        s = progress.detach().clone().requires_grad_()
        fraction = fractions(schedule, s)
        (slope,) = torch.autograd.grad(fraction.sum(), s)
    fraction = fraction.detach()
    weights = (stretch[1] - stretch[0]) * slope.abs() / fraction
    return torch.where(fraction > 0, weights, torch.zeros_like(weights))


@frozen(slots=False)
class Noise:
    """Noise of a progress: its mask fraction, and the weight of a masked token's cross entropy there."""

    schedule: MaskSchedule
    steps: tuple[float, ...] = ()
    """Mask fractions f_0, f_1, ... of the discrete time steps, which don't fall; empty where time is continuous."""
    start: float = 0.0
    """The fraction f_(-1) that the first step reaches down to."""
    falls: bool = False
    """Whether progress goes through the steps from the last to the first, since the schedule falls."""

    @classmethod
    def of(cls, schedule: MaskSchedule, training: TrainingConfig) -> Noise:
        """Build from ``training.time_steps`` and ``training.time_step_fractions``.

        Raises:
            ContractError: the schedule isn't one.
        """
        check_schedule(schedule, (0.0, 1.0))
        given = training.time_step_fractions
        if training.time_steps is None and not given:
            return cls(schedule)
        count = training.time_steps or len(given)
        if given:
            return cls(schedule, interpolated(given, count))
        at_ends = schedule.fraction(torch.arange(count + 1, dtype=torch.float64) / count).tolist()
        falls = at_ends[0] > at_ends[-1]
        start, *fractions = reversed(at_ends) if falls else at_ends
        return cls(schedule, tuple(fractions), start, falls)

    @cached_property
    def _fractions(self) -> Tensor:
        return torch.tensor(self.steps, dtype=torch.float64)

    @cached_property
    def _step_weights(self) -> Tensor:
        """Weights (f_i - f_(i-1)) / f_i of every step [T]; 0 where nothing is ever masked."""
        below = torch.cat([torch.tensor([self.start], dtype=torch.float64), self._fractions[:-1]])
        return torch.where(self._fractions > 0, (self._fractions - below) / self._fractions, 0.0)

    def step(self, progress: Tensor) -> Tensor:
        """Return the time step of each progress, int64."""
        along = 1 - progress if self.falls else progress
        # Rounded, since 1/3 of 3 steps is one step and not a little less.
        return torch.round(along * len(self.steps), decimals=9).long().clamp(max=len(self.steps) - 1)

    def fraction(self, progress: Tensor) -> Tensor:
        """Return the mask fraction of each progress."""
        if not self.steps:
            return fractions(self.schedule, progress)
        return self._fractions[self.step(progress)].to(progress.dtype)

    def weights(self, progress: Tensor, stretch: tuple[float, float]) -> Tensor:
        """Return the weight of a masked token's cross entropy at each progress [B] of the stretch, under the NELBO."""
        if not self.steps:
            return nelbo_weights(self.schedule, progress, stretch)
        return (stretch[1] - stretch[0]) * len(self.steps) * self._step_weights[self.step(progress)].to(progress.dtype)

    def band(self, stretch: tuple[float, float]) -> tuple[float, float]:
        """Return the mask fractions at the two ends of a stretch of progress; equal ends are one fraction."""
        if not self.steps or stretch[0] == stretch[1]:
            low, high = self.fraction(torch.tensor(stretch, dtype=torch.float64)).tolist()
            return low, high
        count = len(self.steps)
        begin, end = (1 - stretch[1], 1 - stretch[0]) if self.falls else stretch
        first, last = math.floor(round(begin * count, 9)), math.ceil(round(end * count, 9)) - 1
        low, high = (self.steps[first - 1] if first else self.start), self.steps[max(first, last)]
        return (high, low) if self.falls else (low, high)


def interpolated(given: Sequence[float] | Mapping[int, float], count: int) -> tuple[float, ...]:
    """Return the fractions of all time steps: a list as it is, a table's gaps filled linearly and its ends held."""
    if not isinstance(given, Mapping):
        return tuple(given)
    known = sorted(given)
    return tuple(np.interp(range(count), known, [given[step] for step in known]).tolist())
