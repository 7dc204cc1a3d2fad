"""A phase's steps as the engine takes them, timed without those at their beginning."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import torch
from attrs import define, evolve, field

from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.events.events import Event, StepDone
from stackwise_core.engine.events.recording import Recorder
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.streamed_step import StreamedStep
from stackwise_core.engine.offload.offload import Offload
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.run_files.metrics import Metrics

Clock = Callable[[], float]
"""Seconds of the clock, or of the processor where others use the machine, too."""

END = object()


class Watched:
    """A phase's draws, which say when so many of its steps are over.

    Args:
        draws: of the phase.
        over: called with the number of steps that are over, each time before the next one's draws are made.
    """

    def __init__(self, draws: Any, over: Callable[[int], None]) -> None:
        self._draws, self._over, self.waited = draws, over, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draws, name)

    def after(self, done: int) -> Generator[Any]:
        """Yield what the phase's draws do: batches of a step, or None while a boundary is made."""
        step = done
        with closing(self._draws.after(done)) as given:
            while True:
                began = time.perf_counter()
                item = next(given, END)
                self.waited += time.perf_counter() - began
                if item is END:
                    return
                yield item
                if item is not None:
                    step += 1
                    self._over(step)


@define
class EngineSteps:
    """The steps of a phase whose stacks are placed."""

    engine: Engine
    planned: PhasePlan
    boundary: Boundary | None
    offload: Offload | None
    """Where the training state of its stacks waits; None: they are in memory."""
    warm_up: int
    steps: int
    clock: Clock
    _streamed: StreamedStep | None = field(default=None, init=False)
    """The step of a streamed phase, which knows of the moments that wait."""

    @classmethod
    def of(
        cls,
        engine: Engine,
        phase: int,
        warm_up: int,
        steps: int,
        clock: Clock,
        boundary_as: Callable[[Boundary], Boundary] | None,
    ) -> EngineSteps:
        """Place the stacks of an engine's phase, and open its boundary.

        Args:
            boundary_as: makes of the boundary what stands for it; None: it is as it is.
        """
        planned = engine.plan.phases[phase]
        offload = engine.offload(planned)
        engine.placement.place(planned.phase, streams=planned.streams, offload=offload)
        boundary = engine.boundaries.open(planned)
        if boundary is not None and boundary_as is not None:
            boundary = boundary_as(boundary)
        return cls(engine, planned, boundary, offload, warm_up, steps, clock)

    @property
    def flops_a_token(self) -> float:
        """Floating-point operations of training a token by the plan, boundaries included."""
        return self.planned.flops / self.planned.tokens

    def take(
        self, begin: Callable[[], None], end: Callable[[], None], listener: Callable[[Event], None] = lambda event: None
    ) -> float:
        """Take the phase's steps from its beginning.

        Args:
            begin: called when those that don't count are over.
            end: called when all are.
            listener: told of every event.

        Returns:
            The share of the counted time in which the step waited for draws and boundaries.
        """
        engine, times = self.engine, list[float]()

        def over(step: int) -> None:
            if step == self.warm_up:
                begin()
                watched.waited = 0.0
                times.append(time.perf_counter())
            elif step == self.warm_up + self.steps:
                end()
                times.append(time.perf_counter())

        planned = evolve(self.planned, steps=self.warm_up + self.steps)
        setup = engine.setup
        with (
            Metrics(engine.files.metrics) as metrics,
            Recorder(engine.plan, setup.config, engine.files.path, metrics, setup.implementations.trackers) as recorder,
        ):

            def tell(event: Event) -> None:
                recorder.record(event)
                listener(event)

            phase = engine.phase(planned, self.boundary, tell, offload=self.offload)
            if isinstance(phase.step, StreamedStep):
                self._streamed = phase.step = self._streamed or phase.step
            phase.draws = watched = Watched(phase.draws, over)
            phase.run()
        return watched.waited / (times[1] - times[0])

    def seconds(self) -> float:
        """Take the steps, and return the seconds of one that counts."""
        times = list[float]()

        def mark() -> None:
            wait_for(self.engine.setup.device)
            times.append(self.clock())

        self.take(mark, mark)
        return (times[1] - times[0]) / self.steps

    def losses(self) -> dict[int, tuple[float, float]]:
        """Take the steps, and return the losses and norms of gradients that it tells of, by step."""
        told = dict[int, tuple[float, float]]()

        def listen(event: Event) -> None:
            if isinstance(event, StepDone):
                told[event.step] = event.loss, event.grad_norm

        self.take(lambda: None, lambda: None, listen)
        return told


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
