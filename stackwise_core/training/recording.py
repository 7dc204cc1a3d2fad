"""Which events of a run are lines of its metrics.jsonl."""

from __future__ import annotations

from cattrs import unstructure

from stackwise_core.runs.metrics import Metrics
from stackwise_core.training.events import BadStep, Event, LossSpike, RunDone, StepDone, Validated


def record(event: Event, metrics: Metrics, log_every: int) -> None:
    """Write what a machine will want to read later."""
    if isinstance(event, StepDone):
        if event.step % log_every == 0 or event.step in (1, event.planned.steps):
            metrics.write(
                "step",
                phase=event.planned.phase.name,
                step=event.step,
                loss=event.loss,
                learning_rate=event.learning_rate,
                grad_norm=event.grad_norm,
                tokens_per_second=event.tokens_per_second,
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
