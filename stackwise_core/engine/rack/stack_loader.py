"""Stacks on their way into memory: read or new, at the precision of their role, with their adapters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from attrs import define, frozen
from torch import Tensor, nn

from stackwise_core.engine.rack.formats import Formats, Role
from stackwise_core.engine.rack.masters import Masters
from stackwise_core.engine.rack.number_range import FINITE, OutOfRange
from stackwise_core.engine.rack.rack import Stack, blank_stack, derived_seed, new_stack, silence, stack_of
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec

Start = Literal["random", "copy", "zero_output"]


@frozen
class Beginning:
    """How a stack without masters begins."""

    start: Start = "random"
    copied: int | None = None
    """The stack that a copy is of."""
    below: tuple[int, ...] = ()
    """The stacks of the path below it, from the tokens upwards."""
    norms: Mapping[int, Tensor] = MappingProxyType({})
    """Weights of exit norms as in their masters, by stack, where they are known without reading these."""


@define
class Resident:
    """A stack in memory, prepared for training or for the trunk, with its adapters."""

    stack: Stack
    role: Role
    own: dict[str, Tensor]
    """The stack's own weights by name."""
    adapters: tuple[str, ...]
    """Names of its adapters."""
    adapter_weights: dict[str, nn.Parameter]
    """The weights of all of them by name."""


@define
class StackLoader:
    """Loader of stacks: from their masters, or as they begin.

    Args:
        masters: gives back stacks that left the memory, and keeps new ones that go straight into the trunk.
        seed: the run's, from which a new stack's weights follow.
    """

    spec: RackSpec
    formats: Formats
    masters: Masters
    seed: int
    device: torch.device

    def load(
        self,
        index: int,
        role: Role,
        adapters: tuple[str, ...],
        beginning: Beginning,
        trained: Mapping[str, Tensor] = MappingProxyType({}),
        masters: dict[str, Tensor] | None = None,
    ) -> Resident:
        """Bring a stack into memory, prepared for a role, with adapters of these names.

        A frozen stack without masters gets them: it can be read again afterwards, or copied.

        Args:
            beginning: how it begins if it is new.
            trained: tensors that training has changed since its masters were written, all of a stack that trains, and
                of adapters; they are copied.
            masters: its masters, where they are in memory as they were written. They become the stack's own, and leave
                the dictionary, so that each goes when it was quantised.

        Raises:
            StackwiseError: a file is damaged, a weight isn't finite, or the precision can't hold it.
            ContractError: a precision or an adapter broke its contract.
        """
        precision = self.formats.precision(index, role)
        if role == "active" and trained:
            stack = blank_stack(self.spec, index, self.device)
            for tensor in stack.state_dict().values():
                tensor.zero_()  # a precision may look at what it prepares
            precision.prepare(stack, trainable=True)
            return self._resident(stack, index, role, adapters, trained)
        keeps = role == "trunk" and precision.quantises
        prepared = None
        if keeps and self.masters.has_stack(index):
            prepared = self.masters.read_prepared(index, precision.described)
        if prepared is not None:
            stack = blank_stack(self.spec, index, self.device)
            precision.from_tensors(stack, prepared)
        else:
            if masters is None:
                stack = self._in_full(index, beginning)
            else:
                stack = stack_of(self.spec, index, masters)
                masters.clear()
            if role == "trunk" and not self.masters.has_stack(index):
                self.masters.write_stack(index, stack.state_dict())
            self._prepare(stack.to(self.device), index, role, beginning)
            if keeps:
                self.masters.write_prepared(index, precision.described, precision.to_tensors(stack))
        return self._resident(stack, index, role, adapters, trained)

    def _resident(
        self, stack: Stack, index: int, role: Role, adapters: tuple[str, ...], trained: Mapping[str, Tensor]
    ) -> Resident:
        """Put adapters on a prepared stack, and copy what training has changed."""
        precision = self.formats.precision(index, role)
        own = stack.state_dict(keep_vars=True) if role == "active" else precision.to_tensors(stack)
        before = {id(parameter) for parameter in stack.parameters()}
        for name in adapters:
            self._put_on(stack, name, index)
        of_adapters = {name: each for name, each in stack.named_parameters() if id(each) not in before}
        with torch.no_grad():
            for name, tensor in trained.items():
                (own if name in own else of_adapters)[name].copy_(tensor)
        return Resident(stack, role, own, adapters, of_adapters)

    def _prepare(self, stack: Stack, index: int, role: Role, beginning: Beginning) -> None:
        """Bring a stack from its masters to the precision of its role.

        Raises:
            StackwiseError: a weight isn't finite, or the precision can't hold it.
            ContractError: the precision made something of a finite weight that isn't.
        """
        precision = self.formats.precision(index, role)
        try:
            precision.prepare(stack, trainable=role == "active")
        except OutOfRange as error:
            raise StackwiseError(f"stack {index}, {error}") from error
        for name, tensor in precision.to_tensors(stack).items():
            if tensor.is_floating_point() and not FINITE.holds(tensor):
                self._refuse(name, index, precision, beginning)

    def _refuse(self, name: str, index: int, precision: Precision, beginning: Beginning) -> None:
        """Refuse a tensor of a prepared stack that isn't finite, naming whose fault that is.

        Raises:
            StackwiseError: a weight of the master isn't finite.
            ContractError: all of them are.
        """
        for weight, master in self._in_full(index, beginning).state_dict().items():
            FINITE.check(master, f"stack {index}, {weight}")
        raise ContractError(
            precision,
            f"prepare() left {name} of stack {index} with numbers that aren't finite, though its masters are; expected "
            "it to refuse what it can't hold (stackwise_core.engine.rack.number_range)",
        )

    def _put_on(self, stack: Stack, name: str, index: int) -> None:
        """Give a stack the adapter that it was left with, or a fresh one, whose weights depend on its place alone."""
        adapter = self.formats.adapters[name]
        if name in self.masters.adapters(index):
            adapter.load(stack, name, self.masters.adapter(index, name))
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derived_seed(self.seed, "adapter", name, index))
            adapter.attach(stack, name, index, self.spec.stacks)

    def _in_full(self, index: int, beginning: Beginning) -> Stack:
        """Return a stack from its master, or a new one."""
        if self.masters.has_stack(index):
            return stack_of(self.spec, index, self.masters.read_stack(index))
        start = beginning.start
        if start == "copy":
            assert beginning.copied is not None
            return stack_of(self.spec, index, self.masters.read_stack(beginning.copied))
        stack = new_stack(self.spec, index, self.seed)
        if start == "zero_output":
            silence(stack)
        trained = next((below for below in reversed(beginning.below) if self.masters.has_stack(below)), None)
        if trained is not None:
            # A new stack is nearly the identity, so that the norm which reads the one below reads it as well.
            known = beginning.norms.get(trained)
            weight = self.masters.read_stack(trained)["norm.weight"] if known is None else known
            stack.norm.load_state_dict({"weight": weight})
        return stack
