"""A phase in training: its steps, with what surrounds them: checkpoints, validation, events, bad numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
from attrs import define, evolve, field, frozen

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.evaluation.validation import Plateau, Validation
from stackwise_core.engine.events.events import (
    BadStep,
    CheckpointWritten,
    Listener,
    LossSpike,
    PhaseResult,
    PhaseResumed,
    StepDone,
    Validated,
)
from stackwise_core.engine.events.stopping import Stopping
from stackwise_core.engine.loop.checkpoint import Checkpoints
from stackwise_core.engine.loop.kept_moments import KeptMoments
from stackwise_core.engine.loop.optimizer import learning_rate
from stackwise_core.engine.loop.phase_state import PhaseState, boundary_counts
from stackwise_core.engine.loop.step_batches import StepBatches
from stackwise_core.engine.loop.step_draws import StepDraws
from stackwise_core.engine.loop.streamed_step import StreamedStep
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.phases.learning_rate import learning_rate_factor
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.process.memory import peak_bytes, reset_peak
from stackwise_core.engine.process.readings import Readings
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.not_finite import first_not_finite
from stackwise_core.engine.rack.rack import derived_seed
from stackwise_core.errors import StackwiseError, is_out_of_memory

MOST_OVERFLOWS = 30
"""Steps in a row that a loss scaler may leave out: each halves its scale."""


@frozen
class _Taken:
    """A step that was taken, and whose numbers are on their way from the device."""

    step: int
    tokens: int
    """Tokens of the phase by then."""
    batches: StepBatches
    factor: float
    """Factor of the peak learning rates."""


@define
class RunningPhase:
    """A phase being trained; ``run`` does it.

    Args:
        draws: of its steps.
        step: what each of them does with its draws.
    """

    planned: PhasePlan
    training: TrainingConfig
    draws: StepDraws
    step: TrainingStep | StreamedStep
    listener: Listener
    validation: Validation | None = None
    checkpoints: Checkpoints | None = None
    stopping: Stopping = field(factory=Stopping)
    moments: KeptMoments | None = None
    """Moments that it begins with; None: it begins without."""
    state: PhaseState = field(init=False)
    _earlier: PhaseState = field(init=False)
    """State of the phase when this process began."""
    _losses: list[float] = field(factory=list, init=False)
    _readings: Readings[_Taken] = field(factory=Readings, init=False)
    """Loss, gradient norm, and each parameter's norm of steps that nobody was told of yet."""
    _is_between_steps: bool = field(default=True, init=False)
    """Whether all of this is as it is after so many whole steps, each with the validation that follows it."""
    _began: float = field(factory=time.perf_counter, init=False)
    _peaks: dict[str, float] = field(init=False)
    """Peak learning rates of the parts that train."""

    def __attrs_post_init__(self) -> None:
        lr, training = self.planned.phase.lr, self.training
        self._peaks = {part_of(name, training): lr * learning_rate(name, training) for name in self.step.names}
        self.state = PhaseState(plateau=Plateau(None if self.planned.phase.ends == "late" else self.training.patience))
        self._earlier = evolve(self.state)

    @property
    def forward(self) -> Forward:
        """The rack."""
        return self.step.forward

    @property
    def boundary(self) -> Boundary | None:
        """The boundary that it starts from; None where it starts at the tokens."""
        return self.draws.boundary

    def run(self) -> PhaseResult:
        """Train until the phase's steps are done, from the newest checkpoint on if there is one.

        Raises:
            StackwiseError: the loss or the gradient is not a finite number, too many steps in a row; no weight was
                changed by them.
            KeyboardInterrupt: somebody asked the run to stop, and a checkpoint was written.
            MemoryError, RuntimeError: memory ran out. A checkpoint of the last step is written where that is possible.
        """
        self._resume()
        try:
            self._take_steps()
        except Exception as error:
            if is_out_of_memory(error):
                self._save_last_step()
            raise
        if self.boundary is not None:
            self.boundary.rest()
        return self._result()

    def _resume(self) -> None:
        """Go back to the newest checkpoint, if there is one."""
        if self.checkpoints is not None:
            self.state, self._losses, damaged = self.checkpoints.restore(self.state, self.step)
            self._earlier = evolve(self.state)
            if self.state.step or damaged:
                self.listener(PhaseResumed(self.planned, self.state.step, tuple(damaged)))
        if self.moments is not None and not self.state.step:
            self.step.begin_with(self.moments)
        reset_peak(self.forward.device)
        self._began = time.perf_counter()

    def _take_steps(self) -> None:
        """Take the steps that are left, with a checkpoint where one is due or was asked for."""
        with closing(self.draws.after(self.state.step)) as steps:
            for step in steps:
                if step is not None:
                    self._take_step(step)
                    self._tell(self._readings.arrived())
                    if self._is_plateau():
                        break
                self._is_between_steps = True
                due = self.checkpoints is not None and step is not None and self.checkpoints.is_due(self.state.step)
                asked = self.stopping.takes_checkpoint()
                if due or asked or self.stopping.requested:
                    self._save()
                    self.stopping.stop()
                if asked and self.checkpoints is not None:
                    self.listener(CheckpointWritten(self.planned, self.state.step))
        self._tell(self._readings.all())

    def _take_step(self, batches: StepBatches) -> None:
        """Take an optimizer step. Nothing of it is read here: its numbers come when the device has them."""
        state, step = self.state, self.step
        seed = derived_seed(self.forward.placement.seed, "step", self.planned.phase.name, state.step)
        first, steps = self.planned.schedule
        factor = learning_rate_factor(first + state.step, steps, self.training)
        self._is_between_steps = step.moves_at_the_end
        numbers = step.backward(batches, seed, factor)
        self._is_between_steps = False
        state.step += 1
        state.tokens += batches.tokens
        step.update(numbers)
        self._readings.add(numbers.together, _Taken(state.step, state.tokens, batches, factor))

    def _tell(self, read: Iterator[tuple[list[float], _Taken]]) -> None:
        """Tell of steps whose numbers were read, good ones and bad ones."""
        for (loss, grad_norm, *norms), taken in read:
            if self._is_good(loss, grad_norm):
                self._tell_of_good_step(taken, loss, grad_norm)
            else:
                bad = (name for name, norm in zip(self.step.names, norms, strict=True) if not math.isfinite(norm))
                self._tell_of_bad_step(taken, loss, grad_norm, next(bad, None))

    def _is_good(self, loss: float, grad_norm: float) -> bool:
        """Return whether a step counts.

        A scaler leaves one out that overflows, and tries a smaller scale; not for ever.
        """
        overflows = self.step.scaler is not None and math.isfinite(loss) and not math.isfinite(grad_norm)
        self.state.overflows = self.state.overflows + 1 if overflows else 0
        return math.isfinite(loss + grad_norm) or (overflows and self.state.overflows <= MOST_OVERFLOWS)

    def _is_plateau(self) -> bool:
        """Validate if it is time for that after a good step, and return whether the phase ends here."""
        if self.validation is None or not self.validation.is_due(self.state.step):
            return False
        self._tell(self._readings.all())
        if self.state.bad_in_a_row:
            return False
        held_out = self.validation.loss(self.forward, self.planned.phase.path)
        self.listener(Validated(self.planned, self.state.step, held_out))
        reached = self.state.plateau.reached(held_out)
        return reached and self.state.step >= self.planned.least_steps

    def _save(self) -> None:
        """Write a checkpoint; its weights are those of the last good step."""
        self._tell(self._readings.all())
        if self.checkpoints is not None:
            now = evolve(self.state, seconds=self.seconds, peak_bytes=self.peak_bytes, boundaries=self._boundary_counts)
            self.checkpoints.write(now, self._losses, self.step)

    def _save_last_step(self) -> None:
        """Write a checkpoint though memory ran out, unless it did while weights were changed."""
        if not self._is_between_steps:
            return
        self.step.forget_gradients()
        try:
            self._save()
        except Exception as error:
            if not is_out_of_memory(error):  # else the one before it serves
                raise

    @property
    def seconds(self) -> float:
        """Seconds of all processes that worked on the phase."""
        return self._earlier.seconds + time.perf_counter() - self._began

    @property
    def peak_bytes(self) -> int:
        """Most memory that one of them held."""
        return max(self._earlier.peak_bytes, peak_bytes(self.forward.device))

    @property
    def _boundary_counts(self) -> dict[str, int]:
        """Counts of the boundaries in all of them."""
        return boundary_counts(self.boundary, self._earlier.boundaries)

    def _tell_of_good_step(self, taken: _Taken, loss: float, grad_norm: float) -> None:
        """Count a good step, and tell of it."""
        state, phase, training = self.state, self.planned.phase, self.training
        state.bad_in_a_row = 0
        self._losses.append(loss)
        mean = state.course.mean
        if state.course.spikes(loss):
            state.spikes += 1
            self.listener(LossSpike(self.planned, taken.step, loss, mean))
        main_lr = training.block_lr if phase.trains or not phase.adapts else training.adapter_lr
        self.listener(
            StepDone(
                planned=self.planned,
                step=taken.step,
                loss=loss,
                learning_rate=taken.factor * phase.lr * main_lr,
                grad_norm=grad_norm,
                tokens_per_second=taken.tokens / self.seconds,
                peak_bytes=self.peak_bytes,
                masked=None if self.planned.band is None else taken.batches.masked_share,
                learning_rates={part: taken.factor * peak for part, peak in self._peaks.items()},
            )
        )

    def _tell_of_bad_step(self, taken: _Taken, loss: float, grad_norm: float, where: str | None) -> None:
        """Count a step whose loss or gradient isn't finite, and tell of it; stop after too many in a row.

        Args:
            where: the first parameter whose gradient isn't finite.
        """
        state, planned = self.state, self.planned
        reason = f"the loss is {loss:g}"
        if math.isfinite(loss):
            reason += f" and the gradient's norm {grad_norm:g}, first in {where or 'their sum'}"
        state.bad += 1
        state.bad_in_a_row += 1
        self.listener(BadStep(planned, taken.step, reason))
        if state.bad_in_a_row <= self.training.max_bad_steps:
            return
        draws = [batch.draws for batch in taken.batches.batches]
        samples = ", ".join(str(sample) for each in draws for sample in each.samples[:4].tolist())
        stacks = ", ".join(map(str, sorted(planned.phase.trains | planned.phase.adapts)))
        ends = "."
        if not math.isfinite(loss):
            found = (first_not_finite(self.forward, planned.phase.path, each) for each in draws)
            ends = next((f": {each}" for each in found if each), ends)
        in_a_row = "" if state.bad_in_a_row == 1 else f" It is number {state.bad_in_a_row} of bad steps in a row."
        changed = "No weight was changed by it."
        if self.training.clip == "stack" and math.isfinite(loss) and self.step.scaler is None:
            changed = 'With training.clip = "stack", the stacks above that one were changed by it, and no others.'
        raise StackwiseError(
            f'phase "{planned.phase.name}" (stack {stacks}), step {taken.step} of {planned.steps}, batch of sequences '
            f"{samples}, ...: {reason}{ends}{in_a_row} {changed} A lower training.block_lr or a "
            "longer training.warmup may help, in a run that begins with it (--fresh)."
        )

    def _result(self) -> PhaseResult:
        """Return the measurements of the phase.

        Raises:
            StackwiseError: no step of it was a good one.
        """
        state, planned, losses, seconds = self.state, self.planned, self._losses, self.seconds
        if not losses:
            raise StackwiseError(f'phase "{planned.phase.name}": no step of it had a finite loss and gradient.')
        tenth = max(1, len(losses) // 10)
        return PhaseResult(
            name=planned.phase.name,
            steps=state.step,
            seconds=seconds,
            first_loss=float(np.mean(losses[:tenth])),
            last_loss=float(np.mean(losses[-tenth:])),
            tokens_per_second=state.tokens / seconds,
            peak_bytes=self.peak_bytes,
            stopped_early=state.step < planned.steps,
            passed_on=planned.steps - state.step if planned.phase.ends == "passing_on" else 0,
            bad_steps=state.bad,
            loss_spikes=state.spikes,
            **{f"boundaries_{name}": count for name, count in self._boundary_counts.items()},
        )


def part_of(name: str, training: TrainingConfig) -> str:
    """Return a parameter's part: ``stacks``, ``stack 3`` where that has its own learning rate, and so on."""
    part, *rest = name.split(".")
    if part in ("stacks", "adapters"):
        return f"{part[:-1]} {rest[0]}" if int(rest[0]) in training.stack_lr_multipliers else part
    return "head" if part == "lm_head" else "embedding"
