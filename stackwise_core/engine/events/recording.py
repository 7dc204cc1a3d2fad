"""Recording of a run's measurements: the events that they are made of, and the trackers that get them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from cattrs import unstructure

from stackwise_core.config.dump import plain
from stackwise_core.config.model import Config
from stackwise_core.engine.events.events import (
    BadStep,
    Event,
    LossSpike,
    PhaseResumed,
    PhaseStarted,
    RunDone,
    StepDone,
    Validated,
)
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.interfaces.tracker import Measurement, TrackedPhase, TrackedRun, Tracker
from stackwise_core.run_files.metrics import Metrics


class Recorder:
    """Recorder that writes measurements into metrics.jsonl and tells the trackers of them.

    Args:
        directory: the run's, absolute.
    """

    def __init__(
        self, plan: Plan, config: Config, directory: Path, metrics: Metrics, trackers: Sequence[Tracker]
    ) -> None:
        self._log_every, self._metrics = config.run.log_every, metrics
        self._trackers = trackers
        phases = tuple(TrackedPhase(each.phase.name, each.steps) for each in plan.phases)
        self._run = TrackedRun(name=config.run.name, directory=directory, phases=phases, config=plain(config))
        self._open = ExitStack()
        self._first = 0

    def record(self, event: Event) -> None:
        """Record the measurements of an event, if it has any."""
        if isinstance(event, PhaseStarted):
            self._first = event.first
            self._begin_phase(event.planned, 0)
        elif isinstance(event, PhaseResumed):
            self._begin_phase(event.planned, event.step)
        for measurement in self._measurements(event):
            named = {} if measurement.phase is None else {"phase": self._run.phases[measurement.phase].name}
            numbered = {} if measurement.phase is None else {"step": measurement.step}
            self._metrics.write(measurement.kind, **named, **numbered, **measurement.values)
            for tracker in self._trackers:
                tracker.record(measurement)

    def _begin_phase(self, planned: PhasePlan, done: int) -> None:
        for tracker in self._trackers:
            tracker.begin_phase(self._place(planned), done, self._first)

    def _measurements(self, event: Event) -> Iterator[Measurement]:
        if isinstance(event, StepDone):
            if event.step % self._log_every == 0 or event.step in (1, event.planned.steps):
                values = {
                    "loss": event.loss,
                    "learning_rate": event.learning_rate,
                    "learning_rates": dict(event.learning_rates),
                    "grad_norm": event.grad_norm,
                    "tokens_per_second": event.tokens_per_second,
                    "peak_bytes": event.peak_bytes,
                    "masked": event.masked,
                }
                yield Measurement(kind="step", phase=self._place(event.planned), step=event.step, values=values)
        elif isinstance(event, Validated):
            values = {"loss": event.loss}
            yield Measurement(kind="validation", phase=self._place(event.planned), step=event.step, values=values)
        elif isinstance(event, BadStep):
            said = {"reason": event.reason}
            yield Measurement(kind="bad_step", phase=self._place(event.planned), step=event.step, values=said)
        elif isinstance(event, LossSpike):
            values = {"loss": event.loss, "mean": event.mean}
            yield Measurement(kind="loss_spike", phase=self._place(event.planned), step=event.step, values=values)
        elif isinstance(event, RunDone):
            for likelihood in event.result.likelihoods:
                values = unstructure(likelihood)
                yield Measurement(kind="likelihood", phase=None, step=likelihood.depth, values=values)

    def _place(self, planned: PhasePlan) -> int:
        return next(place for place, each in enumerate(self._run.phases) if each.name == planned.phase.name)

    def __enter__(self) -> Recorder:
        with ExitStack() as opening:
            for tracker in self._trackers:
                tracker.begin(self._run)
                opening.callback(tracker.close)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
