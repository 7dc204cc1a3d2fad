"""Which stack is where, and at which precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from attrs import define
from torch import Tensor, nn

from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.rack.rack import AttentionContext, Ends, Stack, new_ends, new_stack

Role = Literal["active", "trunk"]


@define
class Resident:
    """A stack in memory, prepared for training or for the trunk."""

    stack: Stack
    role: Role


class Residency:
    """The rack as it stands in memory: its ends, and each stack that a phase has needed so far.

    Args:
        read_master: gives a stack's full-precision tensors by its index, for one that left them and trains again.
        write_master: keeps them, for a new stack that goes straight into the trunk.
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
        read_master: Callable[[int], dict[str, Tensor]],
        write_master: Callable[[int, dict[str, Tensor]], None],
    ) -> None:
        self.spec, self.seed, self.device = spec, seed, device
        self._precisions: dict[Role, Precision] = {"active": active, "trunk": trunk}
        self._read_master, self._write_master = read_master, write_master
        self._residents: dict[int, Resident] = {}
        self.ends: Ends = new_ends(spec, mask_id, seed).to(device)

    def place(self, phase: Phase) -> None:
        """Bring every stack of a phase's path to the precision that it has there, and freeze all but what trains."""
        for index in phase.path:
            self._bring(index, "active" if index in phase.trains else "trunk")
            self.stack(index).requires_grad_(index in phase.trains)
        self.ends.embed_tokens.requires_grad_(phase.embedding or (phase.head and self.ends.lm_head is None))
        if self.ends.lm_head is not None:
            self.ends.lm_head.requires_grad_(phase.head)

    def _bring(self, index: int, role: Role) -> None:
        resident = self._residents.get(index)
        if resident is not None and resident.role == role:
            return
        if resident is None:
            stack = new_stack(self.spec, index, self.seed)
            below = self._residents.get(index - 1)
            if below is not None:
                # A new stack is nearly the identity, so that the norm which reads the one below reads it as well.
                stack.norm.load_state_dict({"weight": below.stack.norm.weight.detach().float().cpu()})
            if role == "trunk":
                self._write_master(index, stack.state_dict())
        elif role == "active":
            stack = Stack(self.spec, index)
            stack.load_state_dict(self._read_master(index))
        else:
            stack = resident.stack
        stack.to(self.device)
        self._precisions[role].prepare(stack, trainable=role == "active")
        self._residents[index] = Resident(stack, role)

    def __contains__(self, index: int) -> bool:
        return index in self._residents

    def stack(self, index: int) -> Stack:
        """The module of a stack that a phase has placed."""
        return self._residents[index].stack

    def precision(self, index: int) -> Precision:
        """The precision that a stack is at."""
        return self._precisions[self._residents[index].role]

    def tensors(self, index: int) -> dict[str, Tensor]:
        """A stack's weights as they compute, by name."""
        return self.precision(index).to_tensors(self.stack(index))

    def through(self, index: int, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Pass hidden states [B, T, D] through a stack; the residual stream is fp32 before and after."""
        with self.precision(index).autocast(self.device):
            return self.stack(index)(hidden, context)

    def cross_entropy(self, index: int, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropies [N] of targets [N] from hidden states [N, D] at the exit of a stack."""
        with self.precision(index).autocast(self.device):
            return self.ends.cross_entropy(hidden, targets, self.stack(index).norm)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What trains now, by name: ``embed_tokens.weight``, ``lm_head.weight``, ``stacks.0.layers.0...``."""
        found = [(name, parameter) for name, parameter in self.ends.named_parameters() if parameter.requires_grad]
        for index, resident in sorted(self._residents.items()):
            found += [
                (f"stacks.{index}.{name}", parameter)
                for name, parameter in resident.stack.named_parameters()
                if parameter.requires_grad
            ]
        return found
