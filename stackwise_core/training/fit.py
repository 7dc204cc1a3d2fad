"""One phase, trained: draws, hidden states, loss, backward, step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stackwise_core.config.model import TrainingConfig
from stackwise_core.data.draws import Drawer, Draws
from stackwise_core.errors import StackwiseError
from stackwise_core.rack.rack import derived_seed
from stackwise_core.rack.residency import Residency
from stackwise_core.training.boundary import Boundary, BoundaryCounts
from stackwise_core.training.cost import PhasePlan, first_step
from stackwise_core.training.events import BoundaryProgress, Listener, PhaseResult, StepDone, Validated
from stackwise_core.training.learning_rate import learning_rate_factor
from stackwise_core.training.memory import peak_bytes, reset_peak
from stackwise_core.training.objective import Objective
from stackwise_core.training.optimizer import make_optimizer
from stackwise_core.training.order import Order
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

    def run(self) -> PhaseResult:
        """Train until the phase's steps are done.

        Raises:
            StackwiseError: the loss or the gradient is not a finite number; no weight was changed by that step.
        """
        device, phase = self.residency.device, self.planned.phase
        named = self.residency.trainable()
        parameters = [parameter for _, parameter in named]
        optimizer = make_optimizer(named, self.training, phase.lr)
        peaks = [group["lr"] for group in optimizer.param_groups]
        scalers = [self.residency.precision(stack).loss_scaler(device) for stack in phase.live_path]
        scaler = next((scaler for scaler in scalers if scaler is not None), None)
        main_lr = self.training.block_lr if phase.trains or not phase.adapts else self.training.adapter_lr
        reset_peak(device)
        began, tokens_done, overflows = time.perf_counter(), 0, 0
        losses: list[float] = []
        plateau = Plateau(self.training.patience)
        for step, (draws, number) in enumerate(self._steps()):
            # What dropout draws depends on the step alone.
            seed_step(derived_seed(self.residency.seed, "step", phase.name, step), device)
            factor = learning_rate_factor(step, self.planned.steps, self.training)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
            loss = self._accumulate(draws, number, scaler)
            if scaler is not None:
                scaler.unscale_(optimizer)
            grad_norm = self._clip(parameters)
            overflows = 0 if math.isfinite(grad_norm) else overflows + 1
            # A scaler leaves a step out whose scaled gradient overflows, and tries a smaller scale; not for ever.
            if not math.isfinite(loss) or overflows > (0 if scaler is None else MOST_OVERFLOWS):
                raise StackwiseError(
                    f'phase "{phase.name}", step {step + 1} of {self.planned.steps}: the loss is {loss:g} and the '
                    f"gradient's norm {grad_norm:g}. A lower training.block_lr or a longer training.warmup may help."
                )
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
            tokens_done += sum(batch.inputs.numel() for batch in draws)
            speed = tokens_done / (time.perf_counter() - began)
            rate, peak = factor * phase.lr * main_lr, peak_bytes(device)
            self.listener(StepDone(self.planned, step + 1, loss, rate, grad_norm, speed, peak))
            if self.validation is not None and self.validation.is_due(step + 1):
                held_out = self.validation.loss(self.residency, phase.path)
                self.listener(Validated(self.planned, step + 1, held_out))
                if plateau.reached(held_out):
                    break
        seconds = time.perf_counter() - began
        tenth = max(1, len(losses) // 10)
        counts = self.boundary.counts if self.boundary else BoundaryCounts()
        return PhaseResult(
            name=phase.name,
            steps=len(losses),
            seconds=seconds,
            first_loss=float(np.mean(losses[:tenth])),
            last_loss=float(np.mean(losses[-tenth:])),
            tokens_per_second=tokens_done / seconds,
            peak_bytes=peak_bytes(device),
            stopped_early=len(losses) < self.planned.steps,
            boundaries_wanted=counts.wanted,
            boundaries_found=counts.found,
            boundaries_repeated=counts.repeated,
            boundaries_computed=counts.computed,
            boundaries_read=counts.read,
            boundaries_evicted=self.boundary.evicted if self.boundary else 0,
            boundaries_damaged=self.boundary.damaged if self.boundary else 0,
        )

    def _steps(self) -> Iterator[tuple[list[Draws], int]]:
        """The draws of each optimizer step, and their number; the boundaries of each window are made ready first."""
        phase, done, passed = self.planned.phase, 0, 0
        distinct = phase.masks_per_sample if phase.masks == "fixed" else math.inf
        epoch, skipped = self.order.epoch_of(first_step(phase, self.order))
        while done < self.planned.steps:
            number, whole = phase.draw_number(epoch), not skipped
            for window in self.order.epoch(epoch):
                members = window.steps[skipped:]
                skipped -= len(window.steps) - len(members)
                if not members:
                    continue
                if self.boundary is not None:
                    for passes, total in self.boundary.prepare(window.chunks, number):
                        self.listener(BoundaryProgress(self.planned, passes, total))
                # One step ahead, so that a store can begin to read what comes next.
                steps = ([self.drawer.draw(samples, number) for samples in step] for step in members)
                ahead = next(steps, None)
                while ahead is not None and done < self.planned.steps:
                    current, ahead = ahead, next(steps, None)
                    if self.boundary is not None and ahead is not None:
                        for draws in ahead:
                            self.boundary.prefetch(draws)
                    yield current, number
                    done += 1
                if done == self.planned.steps:
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

    def _clip(self, parameters: list[nn.Parameter]) -> float:
        """The norm of the whole gradient, which is scaled down to ``max_grad_norm`` where that is set."""
        limit = self.training.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(parameters, limit))


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generators that a step can draw from; ``torch.manual_seed`` takes its time to seed all there are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
