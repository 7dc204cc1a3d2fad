"""Which events of a run are lines of its metrics.jsonl, and which are scalars for TensorBoard."""

from __future__ import annotations

from attrs import frozen
from cattrs import unstructure

from stackwise_core.inference.evaluate import Likelihood
from stackwise_core.runs.metrics import Metrics
from stackwise_core.runs.tensorboard import TensorBoard
from stackwise_core.training.events import (
    BadStep,
    Event,
    LossSpike,
    PhaseResumed,
    PhaseStarted,
    RunDone,
    StepDone,
    Validated,
)
from stackwise_core.training.notes import band_text
from stackwise_core.training.phase_plan import PhasePlan
from stackwise_core.training.plan import Plan


def is_logged(event: StepDone, log_every: int) -> bool:
    """Whether a step is one that is written down."""
    return event.step % log_every == 0 or event.step in (1, event.planned.steps)


def record(event: Event, metrics: Metrics, log_every: int) -> None:
    """Write what a machine will want to read later."""
    if isinstance(event, StepDone):
        if is_logged(event, log_every):
            metrics.write(
                "step",
                phase=event.planned.phase.name,
                step=event.step,
                loss=event.loss,
                learning_rate=event.learning_rate,
                learning_rates=dict(event.learning_rates),
                grad_norm=event.grad_norm,
                tokens_per_second=event.tokens_per_second,
                peak_bytes=event.peak_bytes,
                masked=event.masked,
            )
    elif isinstance(event, Validated):
        metrics.write("validation", phase=event.planned.phase.name, step=event.step, loss=event.loss)
    elif isinstance(event, BadStep):
        metrics.write("bad_step", phase=event.planned.phase.name, step=event.step, reason=event.reason)
    elif isinstance(event, LossSpike):
        name = event.planned.phase.name
        metrics.write("loss_spike", phase=name, step=event.step, loss=event.loss, mean=event.mean)
    elif isinstance(event, RunDone):
        for likelihood in event.result.likelihoods:
            metrics.write("likelihood", **unstructure(likelihood))


@frozen
class Scalars:
    """Writes the same for TensorBoard: a folder a phase, all of them on one axis of steps."""

    board: TensorBoard
    plan: Plan
    log_every: int

    def record(self, event: Event) -> None:
        """Write what can be drawn as a curve."""
        if isinstance(event, PhaseStarted):
            self._begin(event.planned, 0)
        elif isinstance(event, PhaseResumed):
            self._begin(event.planned, event.step)
        elif isinstance(event, StepDone):
            if is_logged(event, self.log_every):
                self.board.write(self._before(event.planned) + event.step, _of_step(event))
        elif isinstance(event, Validated):
            self.board.write(self._before(event.planned) + event.step, {"validation_loss": event.loss})
        elif isinstance(event, RunDone):
            self.board.begin("evaluation", 0)
            for likelihood in event.result.likelihoods:
                self.board.write(likelihood.depth, _of_depth(likelihood))

    def _begin(self, planned: PhasePlan, done: int) -> None:
        place, digits = self._place(planned), len(str(len(self.plan.phases)))
        self.board.begin(f"{place + 1:0{digits}d} {planned.phase.name}", self._before(planned) + done + 1)

    def _place(self, planned: PhasePlan) -> int:
        return next(place for place, each in enumerate(self.plan.phases) if each is planned)

    def _before(self, planned: PhasePlan) -> int:
        """Steps that are planned before a phase."""
        return sum(each.steps for each in self.plan.phases[: self._place(planned)])


def _of_step(event: StepDone) -> dict[str, float]:
    values = {
        "loss": event.loss,
        "grad_norm": event.grad_norm,
        "tokens_per_second": event.tokens_per_second,
        "peak_bytes": float(event.peak_bytes),
        **{f"learning_rate/{part}": rate for part, rate in event.learning_rates.items()},
    }
    return values if event.masked is None else {**values, "masked": event.masked}


def _of_depth(likelihood: Likelihood) -> dict[str, float]:
    """A likelihood's numbers; its depth is their step."""
    values = {"nats_per_token": likelihood.nats_per_token, "bits_per_byte": likelihood.bits_per_byte}
    return values | {f"nats_per_token/{band_text(each.band)}": each.nats_per_token for each in likelihood.bands}
