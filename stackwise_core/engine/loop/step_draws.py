"""Draws of a phase's optimizer steps, in order, with the boundaries that they start from made ready."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain

import numpy as np
import torch
from attrs import frozen

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.draws.draws import Drawer
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.events.events import BoundaryProgress, Listener
from stackwise_core.engine.loop.step_batches import StepBatches
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.phases.phase_steps import first_step
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.process.ahead import made_ahead

AHEAD = 3
"""Steps whose batches are made before they are needed, or wait."""


@frozen
class _Part:
    """Steps of a window that are to be taken, under draws of one number."""

    chunks: list[int]
    steps: list[list[np.ndarray]]
    number: int
    is_last_of_draws: bool
    """Whether every draw has been trained on once, after these steps: the boundary below is no longer needed."""


@frozen
class StepDraws:
    """The stream of a phase's batches, which any step can be the first of.

    Args:
        boundary: that the phase starts from; None where it starts at the tokens.
        objective: says what each forward pass predicts, and at which weight.
        device: that the batches are for.
        workers: threads that make them ahead; 0: none.
    """

    planned: PhasePlan
    drawer: Drawer
    order: Order
    boundary: Boundary | None
    objective: PhaseLoss
    device: torch.device
    workers: int
    listener: Listener

    def after(self, done: int) -> Generator[StepBatches | None]:
        """Yield the batches of each step after so many steps.

        The boundaries of a window come before its steps. While they are made there is now and then a step without
        batches, at which the caller may stop.
        """
        parts = self._parts(done)
        if self.boundary is None:
            yield from made_ahead(chain.from_iterable(map(self._calls, parts)), self.workers, AHEAD)
            return
        for part in parts:
            if part.steps:
                for passes, total in self.boundary.fill_window(part.chunks, part.number):
                    self.listener(BoundaryProgress(self.planned, passes, total))
                    yield None
            yield from self._announced(made_ahead(self._calls(part), self.workers, AHEAD), self.boundary)
            if part.is_last_of_draws:
                self.boundary.drop_below()

    def _parts(self, done: int) -> Iterator[_Part]:
        """Yield what is left of each window after so many steps."""
        phase, steps, step, passed = self.planned.phase, self.planned.steps, 0, 0
        distinct = phase.masks_per_sample if phase.masks == "fixed" else math.inf
        epoch, skipped = self.order.epoch_of(first_step(phase, self.order))
        while step < steps:
            number, whole = phase.draw_number(epoch), not skipped
            windows = self.order.epoch(epoch)
            for place, window in enumerate(windows):
                members = window.steps[skipped:]
                skipped -= len(window.steps) - len(members)
                over = min(max(done - step, 0), len(members))
                step, members = step + over, members[over:][: steps - step - over]
                step += len(members)
                is_last = passed + whole == distinct and (place == len(windows) - 1 or step == steps)
                if members or is_last:
                    yield _Part(window.chunks, members, number, is_last)
                if step == steps:
                    break
            epoch, passed = epoch + 1, passed + whole

    def _calls(self, part: _Part) -> Iterable[Callable[[], StepBatches]]:
        return (partial(self._make, samples, part.number) for samples in part.steps)

    def _make(self, passes: list[np.ndarray], number: int) -> StepBatches:
        """Make the batches of a step: a function of samples and number alone, whichever thread calls it."""
        draws = [self.drawer.draw(samples, number) for samples in passes]
        return StepBatches.of(draws, number, self.objective, self.device)

    @staticmethod
    def _announced(steps: Generator[StepBatches], boundary: Boundary) -> Iterator[StepBatches]:
        """Yield steps, each once the next one is announced, so that a store can begin to read what that needs."""
        with closing(steps):
            current = announced(next(steps, None), boundary)
            while current is not None:
                following = announced(next(steps, None), boundary)
                yield current
                current = following


def announced(step: StepBatches | None, boundary: Boundary) -> StepBatches | None:
    """Announce the batches of a step, if there is one, to the boundary that they are read from; return the step."""
    for batch in () if step is None else step.batches:
        boundary.prefetch(batch.draws)
    return step
