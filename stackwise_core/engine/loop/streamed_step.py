"""A training step with one stack in memory at a time; its gradient is the one of activation checkpointing.

Forward, stack by stack, each stack's input kept; at the top the head; backward, stack by stack from the top: the input
is read, the stack runs again, its gradient goes down. A stack is visited twice, however many forward passes a step has.
Gradients wait until the norm of all of them is known; then each stack's weights and moments are moved in turn. With
``clip = "stack"`` they don't wait: a stack's weights move while it is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.loop.kept_moments import KeptMoments, moments_by_name, moments_by_place
from stackwise_core.engine.loop.optimizer import learning_rate, make_optimizer
from stackwise_core.engine.loop.optimizer_state import (
    Number,
    check_optimizer_state,
    load_optimizer_state,
    optimizer_state,
)
from stackwise_core.engine.loop.step_batches import BatchOnDevice, StepBatches
from stackwise_core.engine.loop.training_step import OPTIMIZER, RACK, seed_generators, under
from stackwise_core.engine.loop.weight_update import StepNumbers, norm_of, update_weights
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.offload.offload import Offload, weights_entry
from stackwise_core.engine.process.transfer import Transfer
from stackwise_core.engine.rack.attention_context import AttentionContext
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.placement import load_parameters
from stackwise_core.engine.rack.rack import derived_seed, separate_head
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_header
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.optimizer import Optimizer
from stackwise_core.interfaces.phase import Phase

ENDS = "ends"
"""The unit of embedding and head; others are stacks."""


@define
class StreamedStep:
    """The optimizer step of a phase, whose stacks are in memory one at a time; embedding and head stay.

    Args:
        offload: where weights, moments, gradients and boundaries wait.
    """

    forward: Forward
    phase: Phase
    objective: PhaseLoss
    boundary: Boundary | None
    training: TrainingConfig
    plugin: Optimizer
    offload: Offload
    named: dict[str, list[str]] = field(init=False)
    """Names of what trains, by unit: ``ends``, ``003``."""
    _norms: dict[str, Tensor] = field(factory=dict, init=False)
    """Norm of each parameter's gradient, by name."""
    _numbers: dict[str, dict[str, Number]] = field(factory=dict, init=False)
    """Plain numbers of the optimizer's state, by unit."""
    _ends: torch.optim.Optimizer | None = field(init=False)
    _shapes: dict[int, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = field(factory=dict, init=False)
    """Number formats and shapes of what training changes of each stack."""
    _saved: list[str] = field(factory=list, init=False)
    """Entries of the last checkpoint."""
    _seed: int = field(default=0, init=False)
    _factor: float = field(default=1.0, init=False)
    """Factor of the peak learning rates in this step."""
    _is_good: Tensor = field(init=False)
    """bool [], whether loss and gradients of this step are finite numbers so far."""
    _batches: list[BatchOnDevice] = field(factory=list, init=False)
    """The step's batches."""
    _contexts: list[AttentionContext] = field(factory=list, init=False)
    """Inputs of attention of each."""
    _transfer: Transfer = field(init=False)
    scaler: None = None

    def __attrs_post_init__(self) -> None:
        placement, ends = self.forward.placement, self.forward.placement.trainable_ends()
        self._transfer = Transfer(self.device)
        self.named = {ENDS: [name for name, _ in ends]} if ends else {}
        self._ends = make_optimizer(self.plugin, ends, self.training, self.phase.lr) if ends else None
        for index in sorted(self._trained):
            with placement.visiting(index):
                self.named[_unit(index)] = [name for name, _ in placement.trainable_of(index)]
                self._shapes[index] = {
                    n: (each.dtype, tuple(each.shape)) for n, each in placement.changes_of(index).items()
                }

    @property
    def _trained(self) -> list[int]:
        """Stacks of which something trains, in the order of the path."""
        return [index for index in self.phase.live_path if index in self.phase.trains | self.phase.adapts]

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        return self.forward.device

    @property
    def names(self) -> list[str]:
        """Names of what trains."""
        return [name for names in self.named.values() for name in names]

    @property
    def moves_at_the_end(self) -> bool:
        """Whether no weight moves before all gradients are known."""
        return self.training.clip == "all"

    def backward(self, step: StepBatches, seed: int, factor: float) -> StepNumbers:
        """Compute the gradients of a step, stack by stack.

        Args:
            seed: of what dropout draws.
            factor: of the peak learning rates, when the weights move.
        """
        self._norms.clear()
        self._seed, self._factor = seed, factor
        self._batches = [batch.on_device(self._transfer) for batch in step.batches]
        self._contexts = [self.forward.context(batch.documents) for batch in step.batches]
        with separate_head(self.forward.placement.ends(self.phase.path[-1]), self._head_is_tied):
            self._enter(step)
            *below, top = self.phase.live_path
            for index in below:
                self._up(index)
            loss = self._top(top, step.normaliser)
            for index in reversed(below):
                self._down(index)
            if self._embedding_trains:
                self._embedding()
        for name, parameter in self.forward.placement.trainable_ends():
            if parameter.grad is not None:
                self._norms[name] = torch.linalg.vector_norm(parameter.grad)
        norms = self._norms_of(self.names)
        self._batches.clear()
        self._contexts.clear()
        return StepNumbers(loss, norm_of(norms, self.device), torch.stack(norms))

    def _norms_of(self, names: Sequence[str]) -> list[Tensor]:
        """Return the norms of the gradients of parameters; 0 where there is none."""
        zero = torch.zeros((), device=self.device)
        return [self._norms.get(name, zero) for name in names]

    def _enter(self, step: StepBatches) -> None:
        """Keep the input of the lowest stack of each forward pass."""
        first = self.phase.live_path[0]
        for place, (batch, there) in enumerate(zip(step.batches, self._batches, strict=True)):
            if self.boundary is None:
                hidden = self.forward.embed(self.phase.path[0], there.inputs, there.fraction)  # [B, T, D]
            else:
                hidden = self.boundary.read(batch.draws, step.number)
            self._keep(first, place, hidden.detach())

    def _up(self, index: int) -> None:
        """Pass all of a step through a stack, and keep the input of the one above.

        With gradients, though nobody wants them here: without, dropout is off, and kernels of bf16 round otherwise.
        """
        above = self.phase.live_path[self.phase.live_path.index(index) + 1]
        with self._visiting(index, then=above):
            for place in range(len(self._batches)):
                entered = self._input(index, place).requires_grad_(self._passes_down(index))
                self._keep(above, place, self._through(index, place, entered).detach())

    def _top(self, index: int, normaliser: float) -> Tensor:
        """Pass all of a step through the highest stack and the head, and back; return the loss, float64 []."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        forward, below = self.forward, self._below(index)
        with self._visiting(index, then=below):
            for place, batch in enumerate(self._batches):
                entered = self._input(index, place).requires_grad_(self._passes_down(index))
                hidden = self._through(index, place, entered)
                predicted = hidden.flatten(0, 1).index_select(0, batch.masked)  # [N, D]
                loss = forward.weighted_loss(index, predicted, batch.targets, batch.weights, self.objective.losses)
                loss = loss / normaliser
                loss.backward()
                total += loss.detach()
                self._pass_down(place, entered)
            self._is_good = total.isfinite()
            self._done(index)
        return total

    def _down(self, index: int) -> None:
        """Run a stack again on its kept input, and pass the gradient down."""
        with self._visiting(index, then=self._below(index)):
            for place in range(len(self._batches)):
                entered = self._input(index, place).requires_grad_(self._passes_down(index))
                arriving = self.offload.read_to(f"descent/{place}", self.device)["gradient"]
                hidden = self._through(index, place, entered)
                if hidden.requires_grad:
                    hidden.backward(arriving)
                self._pass_down(place, entered)
            self._done(index)

    def _embedding(self) -> None:
        """Pass the gradient into the embedding."""
        for place, batch in enumerate(self._batches):
            hidden = self.forward.embed(self.phase.path[0], batch.inputs, batch.fraction)
            hidden.backward(self.offload.read_to(f"descent/{place}", self.device)["gradient"])

    @contextmanager
    def _visiting(self, index: int, then: int | None) -> Iterator[None]:
        """Keep a stack in memory while this lasts, and read the weights of the one that comes then meanwhile."""
        with self.forward.placement.visiting(index):
            if then is not None:
                self.offload.prefetch(weights_entry(then))
            yield

    def _through(self, index: int, place: int, hidden: Tensor) -> Tensor:
        seed_generators(derived_seed(derived_seed(self._seed, place), index), self.device)
        return self.forward.through(index, hidden, self._contexts[place])

    def _keep(self, index: int, batch: int, hidden: Tensor) -> None:
        dtype = torch.bfloat16 if self.training.boundary_dtype == "bf16" else hidden.dtype
        self.offload.write(f"boundary/{_unit(index)}/{batch}", {"hidden": hidden.to(dtype)})

    def _input(self, index: int, batch: int) -> Tensor:
        """Return the kept input [B, T, D] of a stack, as a tensor of its own."""
        kept = self.offload.read_to(f"boundary/{_unit(index)}/{batch}", self.device)["hidden"]
        return kept.to(torch.float32, copy=self.device.type == "cpu")

    def _passes_down(self, index: int) -> bool:
        """Return whether something below a stack trains."""
        below = self.phase.live_path[: self.phase.live_path.index(index)]
        return self._embedding_trains or any(each in self._trained for each in below)

    def _below(self, index: int) -> int | None:
        """Return the stack below, where it has to be visited on the way down."""
        place = self.phase.live_path.index(index)
        return self.phase.live_path[place - 1] if place else None

    def _pass_down(self, batch: int, entered: Tensor) -> None:
        if entered.requires_grad:
            assert entered.grad is not None
            self.offload.write(f"descent/{batch}", {"gradient": entered.grad})

    def _done(self, index: int) -> None:
        """Put the gradients of the stack in memory away, or move its weights by them.

        Its weights are written where they have changed, or aren't there yet.
        """
        placement = self.forward.placement
        trains = placement.trainable_of(index)
        if not trains:
            return
        gradients = {name: each.grad for name, each in trains if each.grad is not None}
        self._norms |= {name: torch.linalg.vector_norm(each) for name, each in gradients.items()}
        moves = not self.moves_at_the_end
        if moves:
            norm = norm_of(self._norms_of([name for name, _ in trains]), self.device)
            self._is_good = self._is_good & norm.isfinite()
            self._move_stack(index, trains, norm)
        else:
            self.offload.write(f"gradients/{_unit(index)}", gradients)
        changes = placement.changes_of(index)
        has_buffers = any(not isinstance(each, nn.Parameter) for each in changes.values())
        if moves or has_buffers or weights_entry(index) not in self.offload:
            self.offload.write(weights_entry(index), changes)
        for _, each in trains:
            each.grad = None

    @property
    def _embedding_trains(self) -> bool:
        """Whether the gradient reaches the embedding, also as a tied head."""
        ends = self.forward.placement.ends(self.phase.path[0])
        return self.boundary is None and any(
            each.requires_grad for name, each in ends.named_parameters() if name.startswith("embed_")
        )

    @property
    def _head_is_tied(self) -> bool:
        """Whether head and embedding are one matrix that trains."""
        return self.forward.placement.spec.tie_embeddings and self._embedding_trains

    def update(self, numbers: StepNumbers) -> None:
        """Move the weights of one unit after the other by their gradients, if the step is a good one, and forget these.

        With ``clip = "stack"`` stacks have moved already, and the bound of embedding and head is their own.
        """
        norm = numbers.grad_norm
        if self.moves_at_the_end:
            self._is_good = numbers.are_finite
            for index in self._trained:  # from the bottom, whose gradients were written last
                self._update(index, norm)
        elif ENDS in self.named:
            norm = norm_of(self._norms_of(self.named[ENDS]), self.device)
            self._is_good = self._is_good & norm.isfinite()
        if self._ends is not None:
            self._move(self._ends, self.forward.placement.trainable_ends(), norm)
        self.forget_gradients()

    def _update(self, index: int, norm: Tensor) -> None:
        """Move the weights of a stack, which needn't be a module for it."""
        unit, device = _unit(index), self.device
        entry = self.offload.read_to(weights_entry(index), device)
        self.offload.prefetch(f"gradients/{unit}")
        named = [(name, nn.Parameter(entry[_within(name)])) for name in self.named[unit]]
        gradients = self.offload.read_to(f"gradients/{unit}", device)
        for name, parameter in named:
            parameter.grad = gradients.get(name)
        self._move_stack(index, named, norm)
        self.offload.write(weights_entry(index), entry | {_within(name): each.data for name, each in named})

    def _move_stack(self, index: int, named: list[tuple[str, nn.Parameter]], norm: Tensor) -> None:
        """Move what trains of a stack by its gradients; its moments are read and written."""
        unit = _unit(index)
        optimizer = make_optimizer(self.plugin, named, self.training, self.phase.lr)
        if f"moments/{unit}" in self.offload:
            moments, numbers = self.offload.read_to(f"moments/{unit}", self.device), self._numbers.get(unit, {})
            check_optimizer_state(self.plugin, optimizer, moments, numbers)
            load_optimizer_state(optimizer, moments, numbers, copy=False)
            del moments
        self._move(optimizer, named, norm)
        tensors, self._numbers[unit] = optimizer_state(optimizer)
        self.offload.write(f"moments/{unit}", tensors)
        optimizer.state.clear()  # torch's optimizers are in circles, which would keep all of it until they are found
        optimizer.param_groups.clear()

    def _move(self, optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]], norm: Tensor) -> None:
        """Clip the gradients of a unit, and take its optimizer's step, if the step is a good one so far."""
        peaks = {id(each): self.phase.lr * learning_rate(name, self.training) for name, each in named}
        for group in optimizer.param_groups:
            group["lr"] = self._factor * peaks[id(group["params"][0])]
        update_weights(optimizer, optimizer.param_groups, norm, self._is_good, self.training)

    def forget_gradients(self) -> None:
        """Free the memory of gradients; those of stacks are written over in the next step."""
        for _, parameter in self.forward.placement.trainable_ends():
            parameter.grad = None

    @property
    def moments(self) -> Iterator[tuple[str, Tensor | Number]]:
        """The optimizer's state by the names of parameters, a stack at a time."""
        if self._ends is not None:
            yield from moments_by_name(self._ends, self.forward.placement.trainable_ends()).items()
        for index in self._trained:
            unit = _unit(index)
            if f"moments/{unit}" in self.offload:
                optimizer, named = self._optimizer_of(index)
                load_optimizer_state(optimizer, self.offload.read(f"moments/{unit}"), self._numbers.get(unit, {}))
                yield from moments_by_name(optimizer, named).items()

    def begin_with(self, kept: KeptMoments) -> None:
        """Begin with moments that were kept.

        Raises:
            StackwiseError: they can't be this optimizer's, or a file is damaged.
        """
        if self._ends is not None:
            tensors, numbers = moments_by_place(kept.of(None), self._ends, self.forward.placement.trainable_ends())
            check_optimizer_state(self.plugin, self._ends, tensors, numbers)
            load_optimizer_state(self._ends, tensors, numbers)
        for index in self._trained:
            optimizer, named = self._optimizer_of(index)
            tensors, numbers = moments_by_place(kept.of(index), optimizer, named)
            check_optimizer_state(self.plugin, optimizer, tensors, numbers)
            if tensors or numbers:
                self.offload.write(f"moments/{_unit(index)}", tensors)
                self._numbers[_unit(index)] = numbers

    def _optimizer_of(self, index: int) -> tuple[torch.optim.Optimizer, list[tuple[str, nn.Parameter]]]:
        """Return an optimizer of a stack's parameters, whose values mean nothing."""
        shapes = self._shapes[index]
        named = [
            (name, nn.Parameter(torch.empty(shapes[_within(name)][1], dtype=shapes[_within(name)][0])))
            for name in self.named[_unit(index)]
        ]
        return make_optimizer(self.plugin, named, self.training, self.phase.lr), named

    checkpoints_kept = 1
    """Checkpoints at a time: with what changes after the last one there are two of everything on the disk."""

    def save(self, directory: RunDirectory, name: str, said: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint; what the offload has written since the last one becomes a part of it.

        Args:
            said: JSON values to keep with it.
            tensors: to keep with it.
        """
        ends, numbers = ({}, {}) if self._ends is None else optimizer_state(self._ends)
        everything = {**tensors, **{RACK + key: each for key, each in self.forward.placement.trainable_ends()}}
        everything |= {OPTIMIZER + key: each for key, each in ends.items()}
        entries = self._saved = self.offload.entries()
        numbers_by_unit = {ENDS: numbers, **self._numbers}
        with directory.together():
            directory.write_checkpoint(
                name, {**said, "optimizer": numbers_by_unit, "scaler": None, "entries": entries}, everything
            )
            for entry in entries:
                directory.write_checkpoint_entry(name, entry, partial(self.offload.save, entry))

    def saved(self, directory: RunDirectory, name: str) -> None:
        """Go on from a checkpoint that was saved."""
        self.offload.saved({entry: directory.checkpoint_entry(name, entry) for entry in self._saved})

    def restore(self, directory: RunDirectory, name: str, said: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint.

        Raises:
            StackwiseError: a file of it is damaged, or it isn't one of what trains now.
        """
        entries, numbers = said.get("entries"), said["optimizer"]
        expected = {_unit(index) for index in self._trained}
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in numbers.values()):
            raise StackwiseError(
                f"checkpoint {name} was written while all that trains was in memory, and training.residency streams it "
                'now. Go on with training.residency = "memory", or from an earlier phase.'
            )
        if not {entry.partition("/")[2] for entry in entries} <= expected:
            raise StackwiseError(f"checkpoint {name}: it has stacks that don't train now")
        paths = {entry: directory.checkpoint_entry(name, entry) for entry in entries}
        for index in self._trained:
            if weights_entry(index) in paths:
                self._check_shapes(index, paths[weights_entry(index)])
        ends = self.forward.placement.trainable_ends()
        load_parameters(ends, under(RACK, tensors))
        if self._ends is not None:
            of_ends = under(OPTIMIZER, tensors)
            check_optimizer_state(self.plugin, self._ends, of_ends, numbers.get(ENDS, {}))
            load_optimizer_state(self._ends, of_ends, numbers.get(ENDS, {}))
        self._numbers = {unit: each for unit, each in numbers.items() if unit != ENDS}
        self.offload.restore(paths)

    def _check_shapes(self, index: int, path: Path) -> None:
        """Refuse weights of another shape than what trains now."""
        try:
            with path.open("rb", buffering=0) as file:
                found = {name: (each.dtype, each.shape) for name, each in read_header(file, path).items()}
        except DamagedTensors as error:
            raise StackwiseError(f"not a safetensors file: {error}") from error
        for name in sorted(found.keys() | self._shapes[index]):
            if found.get(name) != self._shapes[index].get(name):
                raise StackwiseError(
                    f"a checkpoint isn't of what trains now: {name} of stack {index} is {found.get(name, 'absent')} "
                    f"in it, and should be {self._shapes[index].get(name, 'absent')}"
                )


def _unit(index: int) -> str:
    return f"{index:03d}"


def _within(name: str) -> str:
    """Return a parameter's name within its stack."""
    return name.split(".", 2)[2]
