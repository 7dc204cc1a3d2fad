"""One phase, trained: draws, hidden states, loss, backward, step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stackwise_core.config.model import TrainingConfig
from stackwise_core.data.draws import Drawer, Draws
from stackwise_core.errors import StackwiseError
from stackwise_core.rack.rack import derived_seed
from stackwise_core.rack.residency import Residency
from stackwise_core.training.boundary import Boundary
from stackwise_core.training.checkpoint import Checkpoints
from stackwise_core.training.events import (
    BadStep,
    BoundaryProgress,
    Listener,
    LossSpike,
    PhaseResult,
    PhaseResumed,
    StepDone,
    Validated,
)
from stackwise_core.training.learning_rate import learning_rate_factor
from stackwise_core.training.memory import peak_bytes, reset_peak
from stackwise_core.training.objective import Objective
from stackwise_core.training.optimizer import make_optimizer
from stackwise_core.training.order import Order
from stackwise_core.training.phase_plan import PhasePlan
from stackwise_core.training.phase_state import PhaseState, boundary_counts
from stackwise_core.training.phase_steps import first_step
from stackwise_core.training.stopping import Stopping
from stackwise_core.training.validation import Plateau, Validation

MOST_OVERFLOWS = 30
"""Steps in a row that a loss scaler may leave out: each halves its scale."""


@frozen
class Fit:
    """A phase with all that it needs; ``run`` trains it."""

    planned: PhasePlan
    residency: Residency
    drawer: Drawer
    objective: Objective
    order: Order
    boundary: Boundary | None
    """None where the phase starts at the tokens."""
    training: TrainingConfig
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
        """
        device, phase = self.residency.device, self.planned.phase
        named = self.residency.trainable()
        parameters = [parameter for _, parameter in named]
        optimizer = make_optimizer(named, self.training, phase.lr)
        peaks = [group["lr"] for group in optimizer.param_groups]
        scalers = [self.residency.precision(stack).loss_scaler(device) for stack in phase.live_path]
        scaler = next((scaler for scaler in scalers if scaler is not None), None)
        main_lr = self.training.block_lr if phase.trains or not phase.adapts else self.training.adapter_lr
        state, losses = PhaseState(plateau=Plateau(self.training.patience)), list[float]()
        if self.checkpoints is not None:
            state, losses, damaged = self.checkpoints.restore(state, self.residency, optimizer, scaler)
            if state.step or damaged:
                self.listener(PhaseResumed(self.planned, state.step, tuple(damaged)))
        earlier = evolve(state)

        def save() -> None:
            # After a bad step the newest checkpoint stays the last good one.
            if self.checkpoints is not None and not state.bad_in_a_row:
                counted = boundary_counts(self.boundary, earlier.boundaries)
                now = evolve(state, seconds=seconds(), peak_bytes=peak(), boundaries=counted)
                self.checkpoints.write(now, losses, self.residency, optimizer, scaler)

        def seconds() -> float:
            return earlier.seconds + time.perf_counter() - began

        def peak() -> int:
            return max(earlier.peak_bytes, peak_bytes(device))

        reset_peak(device)
        began = time.perf_counter()
        for draws, number in self._steps(state.step):
            if draws is None:  # while boundaries are made
                if self.stopping.requested:
                    save()
                    self.stopping.stop()
                continue
            # What dropout draws depends on the step alone.
            seed_step(derived_seed(self.residency.seed, "step", phase.name, state.step), device)
            factor = learning_rate_factor(state.step, self.planned.steps, self.training)
            for group, peak_lr in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak_lr
            loss = self._accumulate(draws, number, scaler)
            if scaler is not None:
                scaler.unscale_(optimizer)
            gradients = [each.grad for each in parameters if each.grad is not None]
            grad_norm = float(nn.utils.get_total_norm(gradients))
            state.step += 1
            state.tokens += sum(batch.inputs.numel() for batch in draws)
            # A scaler leaves a step out whose scaled gradient overflows, and tries a smaller scale; not for ever.
            overflows = scaler is not None and math.isfinite(loss) and not math.isfinite(grad_norm)
            state.overflows = state.overflows + 1 if overflows else 0
            if (overflows and state.overflows <= MOST_OVERFLOWS) or math.isfinite(loss + grad_norm):
                state.bad_in_a_row = 0
            else:
                self._leave_out(state, draws, loss, grad_norm, named)
            if math.isfinite(grad_norm) and self.training.max_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.training.max_grad_norm, torch.tensor(grad_norm))
            if scaler is not None:
                scaler.step(optimizer)
                scaler.update()
            elif not state.bad_in_a_row:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not state.bad_in_a_row:
                losses.append(loss)
                mean = state.course.mean
                if state.course.spikes(loss):
                    state.spikes += 1
                    self.listener(LossSpike(self.planned, state.step, loss, mean))
                rate = factor * phase.lr * main_lr
                speed = state.tokens / seconds()
                self.listener(StepDone(self.planned, state.step, loss, rate, grad_norm, speed, peak()))
            if self.validation is not None and self.validation.is_due(state.step):
                held_out = self.validation.loss(self.residency, phase.path)
                self.listener(Validated(self.planned, state.step, held_out))
                if state.plateau.reached(held_out):
                    break
            if self.stopping.requested or (self.checkpoints is not None and self.checkpoints.is_due(state.step)):
                save()
                self.stopping.stop()
        if not losses:
            raise StackwiseError(f'phase "{phase.name}": no step of it had a finite loss and gradient.')
        tenth = max(1, len(losses) // 10)
        counts = boundary_counts(self.boundary, earlier.boundaries)
        return PhaseResult(
            name=phase.name,
            steps=state.step,
            seconds=seconds(),
            first_loss=float(np.mean(losses[:tenth])),
            last_loss=float(np.mean(losses[-tenth:])),
            tokens_per_second=state.tokens / seconds(),
            peak_bytes=peak(),
            stopped_early=state.step < self.planned.steps,
            bad_steps=state.bad,
            loss_spikes=state.spikes,
            boundaries_wanted=counts["wanted"],
            boundaries_found=counts["found"],
            boundaries_repeated=counts["repeated"],
            boundaries_computed=counts["computed"],
            boundaries_read=counts["read"],
            boundaries_evicted=counts["evicted"],
            boundaries_damaged=counts["damaged"],
        )

    def _leave_out(
        self,
        state: PhaseState,
        draws: list[Draws],
        loss: float,
        grad_norm: float,
        named: list[tuple[str, nn.Parameter]],
    ) -> None:
        """Count a step whose loss or gradient isn't finite, and say so; stop after too many in a row."""
        reason = f"the loss is {loss:g}"
        if math.isfinite(loss):
            culprits = (name for name, each in named if each.grad is not None and not each.grad.isfinite().all())
            reason += f" and the gradient's norm {grad_norm:g}, first in {next(culprits, 'their sum')}"
        state.bad += 1
        state.bad_in_a_row += 1
        self.listener(BadStep(self.planned, state.step, reason))
        if state.bad_in_a_row <= self.training.max_bad_steps:
            return
        samples = ", ".join(str(sample) for batch in draws for sample in batch.samples[:4].tolist())
        stacks = ", ".join(map(str, sorted(self.planned.phase.trains | set(self.planned.phase.adapts))))
        in_a_row = "" if state.bad_in_a_row == 1 else f" It is number {state.bad_in_a_row} of bad steps in a row."
        raise StackwiseError(
            f'phase "{self.planned.phase.name}" (stack {stacks}), step {state.step} of {self.planned.steps}, batch of '
            f"sequences {samples}, ...: {reason}.{in_a_row} No weight was changed by it. A lower training.block_lr or "
            "a longer training.warmup may help, in a run that begins with it (--fresh)."
        )

    def _steps(self, done: int = 0) -> Iterator[tuple[list[Draws], int] | tuple[None, int]]:
        """The draws of each optimizer step after so many, and their number; the boundaries of each window first.

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
        """Forward and backward passes of one optimizer step; the loss."""
        total, normaliser = 0.0, self.objective.normaliser(step)
        for draws in step:
            loss = self.objective.weighted_sum(self._cross_entropies(draws, number), draws) / normaliser
            (loss if scaler is None else scaler.scale(loss)).backward()
            total += loss.item()
        return total

    def _cross_entropies(self, draws: Draws, number: int) -> Tensor:
        """Cross entropies [N] of a batch's masked tokens at the end of the phase's path."""
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
        return residency.cross_entropy(phase.path[-1], masked, draws.targets.to(device))


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generators that a step can draw from; ``torch.manual_seed`` takes its time to seed all there are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
