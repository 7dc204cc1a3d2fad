"""Draws of a phase's optimizer steps, in order, with the boundaries that they start from made ready."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from attrs import frozen

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.draws.draws import Drawer, Draws
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.events.events import BoundaryProgress, Listener
from stackwise_core.engine.phases.phase_steps import first_step
from stackwise_core.engine.plan.phase_plan import PhasePlan


@frozen
class StepDraws:
    """The stream of a phase's draws, which any step can be the first of."""

    planned: PhasePlan
    drawer: Drawer
    order: Order
    boundary: Boundary | None
    """Boundary that the phase starts from; None where it starts at the tokens."""
    listener: Listener

    def after(self, done: int) -> Iterator[tuple[list[Draws], int] | tuple[None, int]]:
        """Yield the draws of each step's forward passes after so many steps, and their number.

        The boundaries of a window come before its steps. While they are made there is now and then a step without
        draws, at which the caller may stop.
        """
        phase, steps, step, passed = self.planned.phase, self.planned.steps, 0, 0
        distinct = phase.masks_per_sample if phase.masks == "fixed" else math.inf
        epoch, skipped = self.order.epoch_of(first_step(phase, self.order))
        while step < steps:
            number, whole = phase.draw_number(epoch), not skipped
            for window in self.order.epoch(epoch):
                members = window.steps[skipped:]
                skipped -= len(window.steps) - len(members)
                over = min(max(done - step, 0), len(members))
                step, members = step + over, members[over:][: steps - step - over]
                if members:
                    for _ in self._prepared(window.chunks, number):
                        yield None, number
                    for draws in self._drawn(members, number):
                        yield draws, number
                    step += len(members)
                if step == steps:
                    break
            epoch, passed = epoch + 1, passed + whole
            if self.boundary is not None and passed == distinct:
                self.boundary.drop_below()

    def _prepared(self, chunks: list[int], number: int) -> Iterator[None]:
        """Make the boundaries of a window's chunks."""
        if self.boundary is not None:
            for passes, total in self.boundary.fill_window(chunks, number):
                self.listener(BoundaryProgress(self.planned, passes, total))
                yield

    def _drawn(self, steps: list[list[np.ndarray]], number: int) -> Iterator[list[Draws]]:
        """Draw the samples of steps, one step ahead, so that a store can begin to read what comes next."""
        drawn = ([self.drawer.draw(samples, number) for samples in passes] for passes in steps)
        ahead = next(drawn, None)
        while ahead is not None:
            current, ahead = ahead, next(drawn, None)
            if self.boundary is not None and ahead is not None:
                for draws in ahead:
                    self.boundary.prefetch(draws)
            yield current
