"""Training of one phase: draws, hidden states, loss, backward, step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from attrs import Factory, define, evolve, field, frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.draws.draws import Drawer, Draws
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.evaluation.validation import Plateau, Validation
from stackwise_core.engine.loop.checkpoint import Checkpoints
from stackwise_core.engine.loop.events import (
    BadStep,
    BoundaryProgress,
    CheckpointWritten,
    Listener,
    LossSpike,
    PhaseResult,
    PhaseResumed,
    StepDone,
    Validated,
)
from stackwise_core.engine.loop.learning_rate import learning_rate_factor
from stackwise_core.engine.loop.optimizer import learning_rate, make_optimizer
from stackwise_core.engine.loop.phase_state import PhaseState, boundary_counts
from stackwise_core.engine.loop.stopping import Stopping
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.phases.phase_steps import first_step
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.process.memory import peak_bytes, reset_peak
from stackwise_core.engine.rack.not_finite import first_not_finite
from stackwise_core.engine.rack.rack import derived_seed
from stackwise_core.engine.rack.residency import Residency
from stackwise_core.errors import StackwiseError, is_out_of_memory
from stackwise_core.interfaces.optimizer import Optimizer

MOST_OVERFLOWS = 30
"""Steps in a row that a loss scaler may leave out: each halves its scale."""


@frozen
class Fit:
    """A phase with all that it needs; ``run`` trains it."""

    planned: PhasePlan
    residency: Residency
    drawer: Drawer
    objective: PhaseLoss
    order: Order
    boundary: Boundary | None
    """Boundary that it starts from; None where the phase starts at the tokens."""
    training: TrainingConfig
    optimizer: Optimizer
    listener: Listener
    validation: Validation | None = None
    checkpoints: Checkpoints | None = None
    stopping: Stopping = field(factory=Stopping)

    def run(self) -> PhaseResult:
        """Train until the phase's steps are done, from the newest checkpoint on if there is one.

        Raises:
            StackwiseError: the loss or the gradient is not a finite number, too many steps in a row; no weight was
                changed by them.
            KeyboardInterrupt: somebody asked the run to stop, and a checkpoint was written.
            MemoryError, RuntimeError: memory ran out. A checkpoint of the last step is written where that is possible.
        """
        going = _Going.begin(self)
        try:
            self._take_steps(going)
        except Exception as error:
            if is_out_of_memory(error):
                going.save_last_step()
            raise
        if self.boundary is not None:
            self.boundary.rest()
        return going.result()

    def _take_steps(self, going: _Going) -> None:
        """Take the steps that are left, with a checkpoint where one is due or was asked for."""
        for draws, number in self._steps(going.state.step):
            if draws is not None and going.step(draws, number) and self._is_plateau(going.state):
                break
            going.is_between_steps = True
            due = self.checkpoints is not None and draws is not None and self.checkpoints.is_due(going.state.step)
            asked = self.stopping.takes_checkpoint()
            if due or asked or self.stopping.requested:
                going.save()
                self.stopping.stop()
            if asked and self.checkpoints is not None:
                self.listener(CheckpointWritten(self.planned, going.state.step))

    def _is_plateau(self, state: PhaseState) -> bool:
        """Validate if it is time for that, and return whether the phase ends here."""
        if self.validation is None or not self.validation.is_due(state.step):
            return False
        held_out = self.validation.loss(self.residency, self.planned.phase.path)
        self.listener(Validated(self.planned, state.step, held_out))
        return state.plateau.reached(held_out)

    def _steps(self, done: int = 0) -> Iterator[tuple[list[Draws], int] | tuple[None, int]]:
        """Yield the draws of each optimizer step after so many, and their number; the boundaries of each window first.

        While boundaries are made there is now and then a step without draws, at which the caller may stop.
        """
        phase, step, passed = self.planned.phase, 0, 0
        distinct = phase.masks_per_sample if phase.masks == "fixed" else math.inf
        epoch, skipped = self.order.epoch_of(first_step(phase, self.order))
        while step < self.planned.steps:
            number, whole = phase.draw_number(epoch), not skipped
            for window in self.order.epoch(epoch):
                members = window.steps[skipped:]
                skipped -= len(window.steps) - len(members)
                over = min(max(done - step, 0), len(members))
                step, members = step + over, members[over:]
                if step == self.planned.steps:
                    break
                if not members:
                    continue
                if self.boundary is not None:
                    for passes, total in self.boundary.prepare(window.chunks, number):
                        self.listener(BoundaryProgress(self.planned, passes, total))
                        yield None, number
                # One step ahead, so that a store can begin to read what comes next.
                steps = ([self.drawer.draw(samples, number) for samples in each] for each in members)
                ahead = next(steps, None)
                while ahead is not None and step < self.planned.steps:
                    current, ahead = ahead, next(steps, None)
                    if self.boundary is not None and ahead is not None:
                        for draws in ahead:
                            self.boundary.prefetch(draws)
                    yield current, number
                    step += 1
                if step == self.planned.steps:
                    break
            epoch, passed = epoch + 1, passed + whole
            if self.boundary is not None and passed == distinct:
                self.boundary.drop_below()

    def _accumulate(self, step: list[Draws], number: int, scaler: torch.amp.GradScaler | None) -> float:
        """Run forward and backward passes of one optimizer step, and return the loss."""
        predicted = [self.objective.predicted(draws) for draws in step]
        total, normaliser = 0.0, self.objective.normaliser(predicted)
        for draws, each in zip(step, predicted, strict=True):
            loss = self.objective.weighted_sum(self._losses(draws, number), each) / normaliser
            (loss if scaler is None else scaler.scale(loss)).backward()
            total += loss.item()
        return total

    def _losses(self, draws: Draws, number: int) -> Tensor:
        """Compute losses [N] of a batch's predicted tokens at the end of the phase's path."""
        residency, phase, device = self.residency, self.planned.phase, self.residency.device
        if self.boundary is None:
            hidden = residency.embed(phase.path[0], draws.inputs, draws.fraction)  # [B, T, D]
        else:
            hidden = self.boundary.read(draws, number)
        context = residency.context(draws.segments)
        for index in phase.live_path:
            if self.training.activation_checkpointing:
                hidden = checkpoint(residency.through, index, hidden, context, use_reentrant=False)
            else:
                hidden = residency.through(index, hidden, context)
        masked = hidden.flatten(0, 1).index_select(0, draws.masked.to(device))  # [N, D]
        return residency.losses(phase.path[-1], masked, draws.targets.to(device), self.objective.losses)


@define
class _Going:
    """A phase being trained: what its steps change."""

    fit: Fit
    named: list[tuple[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    peaks: list[float]
    """Peak learning rates of the optimizer's groups."""
    peak_by_part: dict[str, float]
    scaler: torch.amp.GradScaler | None
    state: PhaseState
    earlier: PhaseState
    """State of the phase when this process began."""
    losses: list[float]
    is_between_steps: bool = True
    """Whether all of this is as it is after so many whole steps, each with the validation that follows it."""
    began: float = Factory(time.perf_counter)

    @classmethod
    def begin(cls, fit: Fit) -> _Going:
        """Return the phase at its beginning, or at its newest checkpoint."""
        residency, phase = fit.residency, fit.planned.phase
        named = residency.trainable()
        optimizer = make_optimizer(fit.optimizer, named, fit.training, phase.lr)
        peaks = [group["lr"] for group in optimizer.param_groups]
        by_part = {part_of(name, fit.training): phase.lr * learning_rate(name, fit.training) for name, _ in named}
        scalers = [residency.precision(stack).loss_scaler(residency.device) for stack in phase.live_path]
        scaler = next((scaler for scaler in scalers if scaler is not None), None)
        state, losses = PhaseState(plateau=Plateau(fit.training.patience)), list[float]()
        if fit.checkpoints is not None:
            state, losses, damaged = fit.checkpoints.restore(state, residency, optimizer, scaler)
            if state.step or damaged:
                fit.listener(PhaseResumed(fit.planned, state.step, tuple(damaged)))
        reset_peak(residency.device)
        return cls(fit, named, optimizer, peaks, by_part, scaler, state, evolve(state), losses)

    @property
    def seconds(self) -> float:
        """Seconds of all processes that worked on the phase."""
        return self.earlier.seconds + time.perf_counter() - self.began

    @property
    def peak_bytes(self) -> int:
        """Most memory that one of them held."""
        return max(self.earlier.peak_bytes, peak_bytes(self.fit.residency.device))

    @property
    def boundaries(self) -> dict[str, int]:
        """Counts of the boundaries in all of them."""
        return boundary_counts(self.fit.boundary, self.earlier.boundaries)

    def save(self) -> None:
        """Write a checkpoint; its weights are those of the last good step."""
        fit = self.fit
        if fit.checkpoints is not None:
            now = evolve(self.state, seconds=self.seconds, peak_bytes=self.peak_bytes, boundaries=self.boundaries)
            fit.checkpoints.write(now, self.losses, fit.residency, self.optimizer, self.scaler)

    def save_last_step(self) -> None:
        """Write a checkpoint though memory ran out, unless it did while weights were changed."""
        if not self.is_between_steps:
            return
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self.save()
        except Exception as error:
            if not is_out_of_memory(error):  # else the one before it serves
                raise

    def step(self, draws: list[Draws], number: int) -> bool:
        """Take an optimizer step, and return whether it was a good one."""
        fit, state, scaler = self.fit, self.state, self.scaler
        phase, training = fit.planned.phase, fit.training
        # What dropout draws depends on the step alone.
        seed_step(derived_seed(fit.residency.seed, "step", phase.name, state.step), fit.residency.device)
        factor = learning_rate_factor(state.step, fit.planned.steps, training)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = factor * peak
        loss = fit._accumulate(draws, number, scaler)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        gradients = [each.grad for _, each in self.named if each.grad is not None]
        grad_norm = float(nn.utils.get_total_norm(gradients))
        self.is_between_steps = False
        state.step += 1
        state.tokens += sum(batch.inputs.numel() for batch in draws)
        good = self._is_good(loss, grad_norm)
        if good:
            if math.isfinite(grad_norm) and training.max_grad_norm:
                parameters = [each for _, each in self.named]
                nn.utils.clip_grads_with_norm_(parameters, training.max_grad_norm, torch.tensor(grad_norm))
            self.optimizer.step() if scaler is None else scaler.step(self.optimizer)
        else:
            self._leave_out(draws, loss, grad_norm)
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if good:
            main_lr = training.block_lr if phase.trains or not phase.adapts else training.adapter_lr
            self._note(draws, loss, factor, factor * phase.lr * main_lr, grad_norm)
        return good

    def _is_good(self, loss: float, grad_norm: float) -> bool:
        """Return whether a step counts.

        A scaler leaves one out that overflows, and tries a smaller scale; not for ever.
        """
        overflows = self.scaler is not None and math.isfinite(loss) and not math.isfinite(grad_norm)
        self.state.overflows = self.state.overflows + 1 if overflows else 0
        return math.isfinite(loss + grad_norm) or (overflows and self.state.overflows <= MOST_OVERFLOWS)

    def _note(self, draws: list[Draws], loss: float, factor: float, main_lr: float, grad_norm: float) -> None:
        """Tell of a good step."""
        fit, state = self.fit, self.state
        state.bad_in_a_row = 0
        self.losses.append(loss)
        mean = state.course.mean
        if state.course.spikes(loss):
            state.spikes += 1
            fit.listener(LossSpike(fit.planned, state.step, loss, mean))
        masked = sum(len(batch.masked) for batch in draws) / sum(batch.scored for batch in draws)
        fit.listener(
            StepDone(
                planned=fit.planned,
                step=state.step,
                loss=loss,
                learning_rate=main_lr,
                grad_norm=grad_norm,
                tokens_per_second=state.tokens / self.seconds,
                peak_bytes=self.peak_bytes,
                masked=None if fit.planned.band is None else masked,
                learning_rates={part: factor * peak for part, peak in self.peak_by_part.items()},
            )
        )

    def _leave_out(self, draws: list[Draws], loss: float, grad_norm: float) -> None:
        """Count a step whose loss or gradient isn't finite, and say so; stop after too many in a row."""
        state, planned = self.state, self.fit.planned
        reason = f"the loss is {loss:g}"
        if math.isfinite(loss):
            bad = (name for name, each in self.named if each.grad is not None and not each.grad.isfinite().all())
            reason += f" and the gradient's norm {grad_norm:g}, first in {next(bad, 'their sum')}"
        state.bad += 1
        state.bad_in_a_row += 1
        self.fit.listener(BadStep(planned, state.step, reason))
        if state.bad_in_a_row <= self.fit.training.max_bad_steps:
            return
        samples = ", ".join(str(sample) for batch in draws for sample in batch.samples[:4].tolist())
        stacks = ", ".join(map(str, sorted(planned.phase.trains | planned.phase.adapts)))
        ends = "."
        if not math.isfinite(loss):
            found = (first_not_finite(self.fit.residency, planned.phase.path, batch) for batch in draws)
            ends = next((f": {each}" for each in found if each), ends)
        in_a_row = "" if state.bad_in_a_row == 1 else f" It is number {state.bad_in_a_row} of bad steps in a row."
        raise StackwiseError(
            f'phase "{planned.phase.name}" (stack {stacks}), step {state.step} of {planned.steps}, batch of sequences '
            f"{samples}, ...: {reason}{ends}{in_a_row} No weight was changed by it. A lower training.block_lr or a "
            "longer training.warmup may help, in a run that begins with it (--fresh)."
        )

    def result(self) -> PhaseResult:
        """Return the measurements of the phase.

        Raises:
            StackwiseError: no step of it was a good one.
        """
        state, planned, losses, seconds = self.state, self.fit.planned, self.losses, self.seconds
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
            bad_steps=state.bad,
            loss_spikes=state.spikes,
            **{f"boundaries_{name}": count for name, count in self.boundaries.items()},
        )


def part_of(name: str, training: TrainingConfig) -> str:
    """Return a parameter's part: ``stacks``, ``stack 3`` where that has its own learning rate, and so on."""
    part, *rest = name.split(".")
    if part in ("stacks", "adapters"):
        return f"{part[:-1]} {rest[0]}" if int(rest[0]) in training.stack_lr_multipliers else part
    return "head" if part == "lm_head" else "embedding"


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generators that a step can draw from; ``torch.manual_seed`` takes its time to seed all there are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
