"""A training step, from draws to weights: hidden states, losses, gradients, clipping, optimizer.

Parameters and gradients are those of ``Placement.trainable``; everything is in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.loop.kept_moments import (
    KeptMoments,
    Moments,
    by_stack,
    moments_by_name,
    moments_by_place,
)
from stackwise_core.engine.loop.optimizer import make_optimizer, unit_of
from stackwise_core.engine.loop.optimizer_state import (
    Number,
    check_optimizer_state,
    load_optimizer_state,
    optimizer_state,
)
from stackwise_core.engine.loop.step_batches import Batch, StepBatches
from stackwise_core.engine.loop.weight_update import StepNumbers, norm_of, update_weights
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.process.transfer import Transfer
from stackwise_core.engine.rack.attention_context import AttentionContext
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.rack import derived_seed, separate_head
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.optimizer import Optimizer
from stackwise_core.interfaces.phase import Phase

RACK, OPTIMIZER = "rack.", "optimizer."
"""Beginnings of the names of a checkpoint's tensors."""


@define
class TrainingStep:
    """The optimizer step of a phase, whose stacks are in memory."""

    forward: Forward
    phase: Phase
    objective: PhaseLoss
    boundary: Boundary | None
    training: TrainingConfig
    plugin: Optimizer
    named: list[tuple[str, nn.Parameter]]
    """What trains, by name."""
    optimizer: torch.optim.Optimizer
    peaks: list[float]
    """Peak learning rates of the optimizer's groups."""
    scaler: torch.amp.GradScaler | None
    _transfer: Transfer = field(init=False)
    _factor: float = field(default=1.0, init=False)
    """Factor of the peak learning rates in this step."""
    moves_at_the_end: ClassVar[bool] = True
    """Whether no weight moves before all gradients are known."""

    @classmethod
    def of(
        cls,
        forward: Forward,
        phase: Phase,
        objective: PhaseLoss,
        boundary: Boundary | None,
        training: TrainingConfig,
        plugin: Optimizer,
    ) -> TrainingStep:
        """Build the step of a phase whose stacks are placed."""
        placement = forward.placement
        named = placement.trainable()
        optimizer = make_optimizer(plugin, named, training, phase.lr)
        peaks = [group["lr"] for group in optimizer.param_groups]
        scalers = [placement.precision(stack).loss_scaler(forward.device) for stack in phase.live_path]
        scaler = next((scaler for scaler in scalers if scaler is not None), None)
        return cls(forward, phase, objective, boundary, training, plugin, named, optimizer, peaks, scaler)

    def __attrs_post_init__(self) -> None:
        self._transfer = Transfer(self.device)

    def backward(self, step: StepBatches, seed: int, factor: float) -> StepNumbers:
        """Add up the gradients of a step's forward passes.

        Args:
            seed: of what dropout draws.
            factor: of the peak learning rates, when the weights move.
        """
        self._factor = factor
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        tied_apart = self._head_is_tied and len(step.batches) > 1
        with separate_head(self.forward.placement.ends(self.phase.path[-1]), tied_apart):
            for place, batch in enumerate(step.batches):
                loss = self.weighted_loss(batch, step.number, derived_seed(seed, place)) / step.normaliser
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                total += loss.detach()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        zero = torch.zeros((), device=self.device)
        norms = [zero if each.grad is None else torch.linalg.vector_norm(each.grad) for _, each in self.named]
        return StepNumbers(total, norm_of(norms, self.device), torch.stack(norms))

    def weighted_loss(self, batch: Batch, number: int, seed: int) -> Tensor:
        """Compute the weighted sum [] of the losses of a batch's predicted tokens at the end of the phase's path."""
        forward, phase = self.forward, self.phase
        inputs, fraction, masked, targets, weights = batch.on_device(self._transfer)
        if self.boundary is None:
            hidden = forward.embed(phase.path[0], inputs, fraction)  # [B, T, D]
        else:
            hidden = self.boundary.read(batch.draws, number)
        context = forward.context(batch.documents)
        for index in phase.live_path:
            if self.training.activation_checkpointing:
                hidden = checkpoint(self._through, index, hidden, context, seed, use_reentrant=False)
            else:
                hidden = self._through(index, hidden, context, seed)
        predicted = hidden.flatten(0, 1).index_select(0, masked)  # [N, D]
        return forward.weighted_loss(phase.path[-1], predicted, targets, weights, self.objective.losses)

    def _through(self, index: int, hidden: Tensor, context: AttentionContext, seed: int) -> Tensor:
        # What dropout draws depends on the step, the pass and the stack alone, not on the order of passes.
        seed_generators(derived_seed(seed, index), self.device)
        return self.forward.through(index, hidden, context)

    @property
    def _head_is_tied(self) -> bool:
        """Whether head and embedding are one matrix that trains as both."""
        placement, weight = self.forward.placement, self.forward.placement.ends(self.phase.path[0]).embed_tokens.weight
        return placement.spec.tie_embeddings and self.boundary is None and weight.requires_grad

    def update(self, numbers: StepNumbers) -> None:
        """Clip the gradients, move the weights by them if the step is a good one, and forget them.

        With ``clip = "stack"`` stacks above the first bad gradient move all the same, as they do where they are
        streamed: it isn't known there yet.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self._factor * peak
        if self.training.clip == "all":
            groups = self.optimizer.param_groups
            update_weights(self.optimizer, groups, numbers.grad_norm, numbers.are_finite, self.training)
        else:
            self._update_by_stack(numbers)
        if self.scaler is not None:
            self.scaler.update()  # from the gradients that there were
        self.forget_gradients()

    def _update_by_stack(self, numbers: StepNumbers) -> None:
        """Move the weights of each stack by gradients clipped by their own norm, from the highest stack down."""
        units = [unit_of(name) for name, _ in self.named]
        named = {id(parameter): unit for (_, parameter), unit in zip(self.named, units, strict=True)}
        is_good = numbers.loss.isfinite()
        for unit in (*reversed(self.phase.live_path), None):
            norms = [norm for norm, of in zip(numbers.norms, units, strict=True) if of == unit]
            groups = [group for group in self.optimizer.param_groups if named[id(group["params"][0])] == unit]
            if groups:
                norm = norm_of(norms, self.device)
                is_good = numbers.are_finite if self.scaler is not None else is_good & norm.isfinite()
                update_weights(self.optimizer, groups, norm, is_good, self.training)

    def forget_gradients(self) -> None:
        """Free the memory of gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        return self.forward.device

    @property
    def names(self) -> list[str]:
        """Names of what trains."""
        return [name for name, _ in self.named]

    @property
    def moments(self) -> Iterator[tuple[str, Tensor | Number]]:
        """The optimizer's state by the names of parameters."""
        yield from by_stack(moments_by_name(self.optimizer, self.named))

    def begin_with(self, kept: KeptMoments) -> None:
        """Begin with moments that were kept.

        Raises:
            StackwiseError: they can't be this optimizer's, or a file is damaged.
        """
        every: Moments = {}
        for stack in {unit_of(name) for name in self.names}:
            every |= kept.of(stack)
        tensors, numbers = moments_by_place(every, self.optimizer, self.named)
        check_optimizer_state(self.plugin, self.optimizer, tensors, numbers)
        load_optimizer_state(self.optimizer, tensors, numbers)

    checkpoints_kept = 2
    """Checkpoints at a time: should the newest be damaged, there is another."""

    def save(self, directory: RunDirectory, name: str, said: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint.

        Args:
            said: JSON values to keep with it.
            tensors: to keep with it.
        """
        moments, numbers = optimizer_state(self.optimizer)
        scaler = None if self.scaler is None else self.scaler.state_dict()
        everything = {RACK + key: each for key, each in self.forward.placement.training_state().items()}
        everything |= {OPTIMIZER + key: each for key, each in moments.items()}
        directory.write_checkpoint(name, {**said, "optimizer": numbers, "scaler": scaler}, everything | tensors)

    def saved(self, directory: RunDirectory, name: str) -> None:
        """Go on from a checkpoint that was saved: nothing is to be done."""

    def restore(self, directory: RunDirectory, name: str, said: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint.

        Raises:
            StackwiseError: it isn't one of what trains now.
        """
        if "entries" in said:
            raise StackwiseError(
                f"checkpoint {name} was written while what trains was streamed, and training.residency has it in "
                'memory now. Go on with training.residency = "stream", or from an earlier phase.'
            )
        moments, scaler = under(OPTIMIZER, tensors), said["scaler"]
        check_optimizer_state(self.plugin, self.optimizer, moments, said["optimizer"])
        self._check_scaler(scaler)
        self.forward.placement.load_training_state(under(RACK, tensors))
        load_optimizer_state(self.optimizer, moments, said["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(scaler)

    def _check_scaler(self, given: object) -> None:
        """Refuse what can't be the loss scaler's state, or is that of one where there is none."""
        expected = None if self.scaler is None else self.scaler.state_dict()
        if isinstance(given, dict) and expected is not None:
            kinds = {key: type(value) for key, value in expected.items()}
            if {key: type(value) for key, value in given.items()} == kinds:
                return
        elif given is expected is None:
            return
        raise StackwiseError("a checkpoint's loss scaler isn't that of what trains now")


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step can draw from; ``torch.manual_seed`` takes its time to seed all there are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
