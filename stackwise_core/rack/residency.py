"""Which stack is where, and at which precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from attrs import define
from torch import Tensor, nn

from stackwise_core.data.draws import Draws
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.rack.rack import AttentionContext, Ends, Stack, new_ends, new_stack, silence

Role = Literal["active", "trunk"]


@define
class Resident:
    """A stack in memory, prepared for training or for the trunk."""

    stack: Stack
    role: Role


class Masters(Protocol):
    """Where stacks' full-precision tensors are kept, by their index."""

    def has_stack(self, index: int) -> bool:
        """Whether a stack was written."""

    def read_stack(self, index: int) -> dict[str, Tensor]:
        """The tensors of a stack that was written."""

    def write_stack(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a stack's tensors."""


class Residency:
    """The rack as it stands in memory: its ends, and the stacks of the path in use.

    Args:
        masters: gives back stacks that left the memory, and keeps new ones that go straight into the trunk.
    """

    def __init__(
        self,
        spec: RackSpec,
        *,
        mask_id: int,
        seed: int,
        active: Precision,
        trunk: Precision,
        device: torch.device,
        masters: Masters,
    ) -> None:
        self.spec, self.seed, self.device = spec, seed, device
        self._precisions: dict[Role, Precision] = {"active": active, "trunk": trunk}
        self._masters = masters
        self._residents: dict[int, Resident] = {}
        owners = range(spec.stacks) if spec.ends == "per_stack" else range(1)
        self._ends = {owner: new_ends(spec, mask_id, seed).to(device) for owner in owners}

    def place(self, phase: Phase) -> None:
        """Bring every stack of a phase's path to the precision that it has there, and freeze all but what trains."""
        self.bring(phase.path, active=phase.trains, start=phase.start)
        for index in phase.path:
            stack = self.stack(index)
            stack.requires_grad_(index in phase.trains)
            stack.norm.requires_grad_(index == phase.exit_norm)
        for ends in self._ends.values():
            ends.requires_grad_(False)
        below, above = self.ends(phase.path[0]), self.ends(phase.path[-1])
        for name, parameter in below.named_parameters():
            if name.startswith("embed_"):
                parameter.requires_grad_(phase.embedding)
        if phase.head:
            (above.embed_tokens if above.lm_head is None else above.lm_head).requires_grad_()

    def bring(
        self,
        path: Sequence[int],
        *,
        active: Collection[int],
        start: Literal["random", "copy", "zero_output"] = "random",
    ) -> None:
        """Have the stacks of a path in memory, and no others; ``start`` says how those begin that are new."""
        for index in set(self._residents) - set(path):
            del self._residents[index]
        for place, index in enumerate(path):
            role: Role = "active" if index in active else "trunk"
            resident = self._residents.get(index)
            if resident is not None and resident.role == role:
                continue
            if resident is not None and role == "trunk":
                stack = resident.stack
            elif self._masters.has_stack(index):
                stack = Stack(self.spec, index)
                stack.load_state_dict(self._masters.read_stack(index))
            else:
                stack = self._new(path, place, start)
                if role == "trunk":
                    self._masters.write_stack(index, stack.state_dict())
            stack.to(self.device)
            self._precisions[role].prepare(stack, trainable=role == "active")
            self._residents[index] = Resident(stack, role)

    def _new(self, path: Sequence[int], place: int, start: Literal["random", "copy", "zero_output"]) -> Stack:
        """A stack that was never trained. Its neighbour is the one before it in the path, or else the one after."""
        index = path[place]
        if start == "copy":
            neighbour = path[place - 1] if place else path[1]
            stack = Stack(self.spec, index)
            stack.load_state_dict(self._masters.read_stack(neighbour))
            return stack
        stack = new_stack(self.spec, index, self.seed)
        if start == "zero_output":
            silence(stack)
        if place and self._masters.has_stack(path[place - 1]):
            # A new stack is nearly the identity, so that the norm which reads the one below reads it as well.
            stack.norm.load_state_dict({"weight": self._masters.read_stack(path[place - 1])["norm.weight"]})
        return stack

    def ends(self, index: int) -> Ends:
        """The embedding below a stack and the head above it."""
        return self._ends[index if self.spec.ends == "per_stack" else 0]

    def load_ends(self, given: Mapping[int | None, Mapping[str, Tensor]]) -> None:
        """Load embedding and head by their owner; a part that isn't given stays as it begins."""
        for owner, ends in self.all_ends():
            if owner in given:
                ends.load_state_dict(given[owner], strict=False)

    def all_ends(self) -> Iterator[tuple[int | None, Ends]]:
        """Each pair of ends and the stack whose own it is, None where all share it."""
        for owner, ends in self._ends.items():
            yield (owner if self.spec.ends == "per_stack" else None), ends

    def __contains__(self, index: int) -> bool:
        return index in self._residents

    def stack(self, index: int) -> Stack:
        """The module of a stack of the path in use."""
        return self._residents[index].stack

    def precision(self, index: int) -> Precision:
        """The precision that a stack is at."""
        return self._precisions[self._residents[index].role]

    def tensors(self, index: int) -> dict[str, Tensor]:
        """A stack's weights as they compute, by name."""
        return self.precision(index).to_tensors(self.stack(index))

    def embed(self, index: int, inputs: Tensor, fraction: Tensor) -> Tensor:
        """Hidden states [B, T, D] that enter a stack from input ids [B, T] at mask fractions float64 [B]."""
        return self.ends(index).embed(inputs.to(self.device), fraction.to(self.device))

    def context(self, segments: Tensor) -> AttentionContext:
        """Who sees whom, from segments int [B, T]; the same for every stack."""
        return self._ends[0].context(segments.to(self.device))

    def through(self, index: int, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Pass hidden states [B, T, D] through a stack; the residual stream is fp32 before and after."""
        with self.precision(index).autocast(self.device):
            return self.stack(index)(hidden, context)

    def cross_entropies(self, draws: Draws, path: Sequence[int], read: Collection[int]) -> Iterator[Tensor]:
        """From the tokens on, the cross entropies [N] of a batch's predictions at each stack of a path to read at."""
        hidden = self.embed(path[0], draws.inputs, draws.fraction)
        context = self.context(draws.segments)
        predicted, targets = draws.masked.to(self.device), draws.targets.to(self.device)
        for index in path:
            hidden = self.through(index, hidden, context)
            if index in read:
                yield self.cross_entropy(index, hidden.flatten(0, 1).index_select(0, predicted), targets)

    def cross_entropy(self, index: int, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropies [N] of targets [N] from hidden states [N, D] at the exit of a stack."""
        with self.precision(index).autocast(self.device):
            return self.ends(index).cross_entropy(hidden, targets, self.stack(index).norm)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What trains now, by name: ``embed_tokens.weight``, ``lm_head.weight``, ``stacks.0.layers.0...``."""
        found = [
            (name, parameter)
            for ends in self._ends.values()
            for name, parameter in ends.named_parameters()
            if parameter.requires_grad
        ]
        for index, resident in sorted(self._residents.items()):
            found += [
                (f"stacks.{index}.{name}", parameter)
                for name, parameter in resident.stack.named_parameters()
                if parameter.requires_grad
            ]
        return found
