"""Residency of stacks: where each one is held, and at which precision.

Of the stacks of the path in use some are in memory for as long as it is. The others, *streamed*, are read when the
hidden states of a whole window pass them, and leave the memory before the next one comes: however deep the rack is, one
of them is there at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from attrs import define, frozen
from torch import Tensor, nn

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.process.allocator import give_back
from stackwise_core.engine.rack.formats import Formats, Role
from stackwise_core.engine.rack.masters import Masters
from stackwise_core.engine.rack.number_range import FINITE, OutOfRange
from stackwise_core.engine.rack.rack import (
    ROWS_MULTIPLE,
    AttentionContext,
    Ends,
    Stack,
    blank_stack,
    derived_seed,
    new_ends,
    new_stack,
    silence,
    stack_of,
)
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec

Start = Literal["random", "copy", "zero_output"]
TokenLosses = Callable[[Tensor, Tensor], Tensor]
"""Losses [N] from logits [N, V] and targets [N]."""


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


@frozen
class Arrangement:
    """Arrangement of the stacks of the path in use: how each is to be held, wherever it is."""

    path: tuple[int, ...] = ()
    active: frozenset[int] = frozenset()
    start: Start = "random"
    adapters: Mapping[int, Collection[str]] = MappingProxyType({})
    streamed: frozenset[int] = frozenset()


class AtExit(NamedTuple):
    """A batch, read out at a stack's exit."""

    stack: int
    batch: int
    """Number of the batch."""
    draws: Draws
    losses: Tensor
    """Of its predicted tokens [N]: cross entropies, unless another function was asked for."""
    """[N], of what the batch predicts."""


class Residency:
    """The rack as it stands in memory: its ends, and the stacks of the path in use.

    Args:
        masters: gives back stacks that left the memory, and keeps new ones that go straight into the trunk.
        window: how many sequences' hidden states may be held between two streamed stacks.
    """

    def __init__(
        self,
        spec: RackSpec,
        *,
        mask_id: int,
        seed: int,
        formats: Formats,
        device: torch.device,
        masters: Masters,
        window: int,
    ) -> None:
        self.spec, self.seed, self.device = spec, seed, device
        self._formats, self._masters, self._window = formats, masters, window
        self._arranged = Arrangement()
        self._residents: dict[int, Resident] = {}
        owners = range(spec.stacks) if spec.ends == "per_stack" else range(1)
        self._ends = {owner: new_ends(spec, mask_id, seed).to(device) for owner in owners}

    def place(self, phase: Phase, *, streams: bool = False) -> None:
        """Bring every stack of a phase's path to the state that it has there, and freeze all but what trains.

        Args:
            streams: whether its trunk is streamed.
        """
        streamed = phase.frozen_prefix if streams else ()
        self.bring(
            phase.path, active=phase.trains, start=phase.start, adapters=phase.trains_adapters, streamed=streamed
        )
        for index in phase.path:
            if index in streamed:
                continue
            resident = self._residents[index]
            trained = phase.trains_adapters.get(index, ())
            chosen = [each for name in trained for each in self._trainable(index, name)]
            resident.stack.requires_grad_(False)
            for parameter in [*chosen, *(resident.own.values() if index in phase.trains else ())]:
                parameter.requires_grad_()
            resident.stack.norm.requires_grad_(index == phase.exit_norm)
        for ends in self._ends.values():
            ends.requires_grad_(False)
        below, above = self.ends(phase.path[0]), self.ends(phase.path[-1])
        for name, parameter in below.named_parameters():
            if name.startswith("embed_"):
                parameter.requires_grad_(phase.embedding)
        if phase.head:
            (above.embed_tokens if above.lm_head is None else above.lm_head).requires_grad_()

    def _trainable(self, index: int, name: str) -> list[nn.Parameter]:
        """Return the weights of a stack's adapter that the adapter made trainable."""
        adapter = self._formats.adapters[name]
        weights = list(adapter.trainable(self._residents[index].stack, [name]))
        if not all(isinstance(each, nn.Parameter) for each in weights):
            raise ContractError(adapter, f"trainable() gave something else than parameters for stack {index}")
        size = adapter.size(self.spec, index)
        if size and not weights:
            raise ContractError(
                adapter, f"trainable() gave no weights for stack {index}, expected the {size} of size()"
            )
        return weights

    def bring(
        self,
        path: Sequence[int],
        *,
        active: Collection[int],
        start: Start = "random",
        adapters: Mapping[int, Collection[str]] = MappingProxyType({}),
        streamed: Collection[int] = (),
    ) -> None:
        """Bring the stacks of a path into memory, with their adapters, and no others.

        Args:
            active: stacks to prepare for training; the others are frozen.
            start: how those begin that are new.
            adapters: names of those that a stack has in any case, fresh ones if need be.
            streamed: frozen stacks of the path that aren't kept in memory, but read each time they are visited.
        """
        self._arranged = Arrangement(tuple(path), frozenset(active), start, adapters, frozenset(streamed))
        for index in set(self._residents) - (set(path) - set(streamed)):
            del self._residents[index]
        for index in path:
            if index not in self._arranged.streamed:
                self._settle(index)
            elif not self._masters.has_stack(index):
                with self.visiting(index):
                    """Its masters are written now, and so it can be read again, or copied."""

    def _settle(self, index: int) -> None:
        """Bring a stack of the path into memory, as it is to be."""
        role: Role = "active" if index in self._arranged.active else "trunk"
        names = tuple(sorted({*self._masters.adapters(index), *self._arranged.adapters.get(index, ())}))
        resident = self._residents.get(index)
        if resident is None or (resident.role, resident.adapters) != (role, names):
            self._residents.pop(index, None)  # before the next one takes its room
            self._residents[index] = self._resident(index, role, names)

    @contextmanager
    def visiting(self, index: int) -> Iterator[None]:
        """Keep a stack of the path in memory while this lasts; a streamed one is read for it."""
        if index in self._residents:
            yield
            return
        self._settle(index)
        try:
            yield
        finally:
            del self._residents[index]
            give_back()

    def let_go(self, stacks: Collection[int]) -> None:
        """Forget stacks, which are read again when they are next needed."""
        for index in stacks:
            self._residents.pop(index, None)

    def _resident(self, index: int, role: Role, adapters: tuple[str, ...]) -> Resident:
        precision = self._formats.precision(index, role)
        keeps = role == "trunk" and precision.quantises
        prepared = None
        if keeps and self._masters.has_stack(index):
            prepared = self._masters.read_prepared(index, precision.described)
        if prepared is not None:
            stack = blank_stack(self.spec, index, self.device)
            precision.from_tensors(stack, prepared)
        else:
            stack = self._in_full(index)
            if role == "trunk" and not self._masters.has_stack(index):
                self._masters.write_stack(index, stack.state_dict())
            self._prepare(stack.to(self.device), index, role)
            if keeps:
                self._masters.write_prepared(index, precision.described, precision.to_tensors(stack))
        own = stack.state_dict(keep_vars=True) if role == "active" else precision.to_tensors(stack)
        before = {id(parameter) for parameter in stack.parameters()}
        for name in adapters:
            self._put_on(stack, name, index)
        of_adapters = {name: each for name, each in stack.named_parameters() if id(each) not in before}
        return Resident(stack, role, own, adapters, of_adapters)

    def _prepare(self, stack: Stack, index: int, role: Role) -> None:
        """Bring a stack from its masters to the precision of its role.

        Raises:
            StackwiseError: a weight isn't finite, or the precision can't hold it.
            ContractError: the precision made something of a finite weight that isn't.
        """
        precision = self._formats.precision(index, role)
        try:
            precision.prepare(stack, trainable=role == "active")
        except OutOfRange as error:
            raise StackwiseError(f"stack {index}, {error}") from error
        for name, tensor in precision.to_tensors(stack).items():
            if tensor.is_floating_point() and not FINITE.holds(tensor):
                self._refuse(name, index, precision)

    def _refuse(self, name: str, index: int, precision: Precision) -> None:
        """Return whose fault it is that a tensor of a prepared stack isn't finite: its master's, or the precision's."""
        for weight, master in self._in_full(index).state_dict().items():
            FINITE.check(master, f"stack {index}, {weight}")
        raise ContractError(
            precision,
            f"prepare() left {name} of stack {index} with numbers that aren't finite, though its masters are; expected "
            "it to refuse what it can't hold (stackwise_core.engine.rack.number_range)",
        )

    def _put_on(self, stack: Stack, name: str, index: int) -> None:
        """Give a stack the adapter that it was left with, or a fresh one, whose weights depend on its place alone."""
        adapter = self._formats.adapters[name]
        if name in self._masters.adapters(index):
            adapter.load(stack, name, self._masters.adapter(index, name))
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derived_seed(self.seed, "adapter", name, index))
            adapter.attach(stack, name, index, self.spec.stacks)

    def _in_full(self, index: int) -> Stack:
        """Return a stack from its master, or a new one."""
        if self._masters.has_stack(index):
            return stack_of(self.spec, index, self._masters.read_stack(index))
        path, start = self._arranged.path, self._arranged.start
        place = path.index(index)
        if start == "copy":
            neighbour = path[place - 1] if place else path[1]
            return stack_of(self.spec, index, self._masters.read_stack(neighbour))
        stack = new_stack(self.spec, index, self.seed)
        if start == "zero_output":
            silence(stack)
        if place and self._masters.has_stack(path[place - 1]):
            # A new stack is nearly the identity, so that the norm which reads the one below reads it as well.
            stack.norm.load_state_dict({"weight": self._masters.read_stack(path[place - 1])["norm.weight"]})
        return stack

    def ends(self, index: int) -> Ends:
        """Return the embedding below a stack and the head above it."""
        return self._ends[index if self.spec.ends == "per_stack" else 0]

    def load_ends(self, given: Mapping[int | None, Mapping[str, Tensor]]) -> None:
        """Load embedding and head by their owner; a part that isn't given stays as it begins.

        Raises:
            OutOfRange: a weight isn't finite.
        """
        for owner, ends in self.all_ends():
            if owner in given:
                for name, tensor in given[owner].items():
                    FINITE.check(tensor, name if owner is None else f"stack {owner}, {name}")
                ends.load_state_dict(given[owner], strict=False)

    def all_ends(self) -> Iterator[tuple[int | None, Ends]]:
        """Yield each pair of ends and the stack whose own it is, None where all share it."""
        for owner, ends in self._ends.items():
            yield (owner if self.spec.ends == "per_stack" else None), ends

    def __contains__(self, index: int) -> bool:
        return index in self._residents

    def stack(self, index: int) -> Stack:
        """Return the module of a stack of the path in use."""
        return self._residents[index].stack

    def precision(self, index: int) -> Precision:
        """Return the precision that a stack of the path in use is at."""
        return self._formats.precision(index, "active" if index in self._arranged.active else "trunk")

    def fingerprint(self, index: int) -> str:
        """Compute a hash of all that decides a frozen stack's output but software: masters, adapters, precision.

        It is taken of the files' checksums, so that the stack needn't be read.
        """
        precision = self.precision(index)
        adapters = {name: self._formats.adapters[name].described for name in self._masters.adapters(index)}
        said = [self.spec.blocks[index], self._masters.checksums(index), precision.described, adapters]
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

    def master(self, index: int) -> dict[str, Tensor]:
        """Return the full-precision weights of a stack that trains, by name."""
        resident = self._residents[index]
        assert resident.role == "active"
        return resident.own

    def training_state(self) -> dict[str, Tensor]:
        """Return all that a training step may change of the rack, by name: what trains, and such stacks' buffers."""
        buffers = {
            f"stacks.{index}.{name}": each
            for index, resident in sorted(self._residents.items())
            if resident.role == "active"
            for name, each in resident.own.items()
            if not isinstance(each, nn.Parameter)
        }
        return {**dict(self.trainable()), **buffers}

    @torch.no_grad()
    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``training_state`` gave.

        Raises:
            StackwiseError: it is that of other tensors.
        """
        now = self.training_state()
        shapes = {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}
        wanted = {name: (tensor.dtype, *tensor.shape) for name, tensor in now.items()}
        for name in sorted(shapes.keys() | wanted):
            if shapes.get(name) != wanted.get(name):
                raise StackwiseError(
                    f"a checkpoint isn't of what trains now: {name} is {shapes.get(name, 'absent')} in it, and should "
                    f"be {wanted.get(name, 'absent')}"
                )
        for name, tensor in tensors.items():
            now[name].copy_(tensor)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return a stack's own weights as it holds them, by name."""
        return self._residents[index].own

    def save_adapter(self, index: int, name: str, directory: Path) -> None:
        """Write a stack's adapter into a directory."""
        self._formats.adapters[name].save(self.stack(index), name, directory)

    def embed(self, index: int, inputs: Tensor, fraction: Tensor) -> Tensor:
        """Return hidden states [B, T, D] that enter a stack from input ids [B, T] at mask fractions float64 [B]."""
        return self.ends(index).embed(inputs.to(self.device), fraction.to(self.device))

    def context(self, segments: Tensor) -> AttentionContext:
        """Compute who sees whom, from segments int [B, T]; the same for every stack."""
        return self._ends[0].context(segments.to(self.device))

    def through(self, index: int, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Pass hidden states [B, T, D] through a stack; the residual stream is fp32 before and after."""
        stack = self.stack(index)
        if stack.training != torch.is_grad_enabled():
            stack.train(torch.is_grad_enabled())  # dropout is for training steps, which alone keep a graph
        with self.precision(index).autocast(self.device):
            try:
                passed: Tensor = stack(hidden, context)
            except RuntimeError as error:
                if "memory" in str(error) or "CUDA error" in str(error):
                    raise
                raise self._not_a_stack(index, hidden, f"can't be computed: {error}") from error
        if passed.shape != hidden.shape or passed.dtype != hidden.dtype:
            raise self._not_a_stack(index, hidden, f"gave {passed.dtype} {list(passed.shape)}")
        return passed

    def _not_a_stack(self, index: int, hidden: Tensor, what: str) -> ContractError:
        """Return the error for a stack that no longer takes hidden states to hidden states."""
        adapters = [origin(self._formats.adapters[name]) for name in self._residents[index].adapters]
        beside = f", with {' and '.join(adapters)} on it," if adapters else ""
        expected = f"expected {hidden.dtype} {list(hidden.shape)}, as it went in"
        said = f"the stack that prepare() left{beside} {' '.join(what.split())}; {expected}"
        return ContractError(self.precision(index), said.replace("torch.", ""))

    def sweep(
        self,
        batches: Iterable[Draws],
        path: Sequence[int],
        read: Collection[int],
        losses_of: TokenLosses | None = None,
    ) -> Iterator[AtExit]:
        """Read batches out at each stack of a path that is to be read at, from the tokens on.

        Where stacks are streamed, as many batches as a window holds pass one together before the next is read.

        Args:
            losses_of: as ``losses`` has it; None: cross entropies.
        """
        left, first = iter(batches), 0
        while group := self._group(left):
            hidden: list[Tensor] = []  # of each batch, [B, T, D]
            for place, index in enumerate(path):
                with self.visiting(index):
                    for number, draws in enumerate(group):
                        if place == 0:
                            hidden.append(self.embed(index, draws.inputs, draws.fraction))
                        hidden[number] = self.through(index, hidden[number], self.context(draws.segments))
                        if index in read:
                            predicted = hidden[number].flatten(0, 1).index_select(0, draws.masked.to(self.device))
                            targets = draws.targets.to(self.device)
                            if losses_of is None:
                                losses = self.cross_entropy(index, predicted, targets)
                            else:
                                losses = self.losses(index, predicted, targets, losses_of)
                            yield AtExit(index, first + number, draws, losses)
            first += len(group)

    def _group(self, batches: Iterator[Draws]) -> list[Draws]:
        """Return the next batches to pass the stacks together."""
        group = [*islice(batches, 1)]
        if not self._arranged.streamed:
            return group
        while group and sum(len(each.inputs) for each in group) < self._window:
            following = [*islice(batches, 1)]
            if not following:
                break
            group += following
        return group

    def cross_entropy(self, index: int, hidden: Tensor, targets: Tensor) -> Tensor:
        """Compute cross entropies [N] of targets [N] from hidden states [N, D] at the exit of a stack."""
        with self.precision(index).autocast(self.device):
            return self.ends(index).cross_entropy(hidden, targets, self.stack(index).norm)

    def losses(self, index: int, hidden: Tensor, targets: Tensor, losses_of: TokenLosses) -> Tensor:
        """Losses [N] of targets [N] from hidden states [N, D] at the exit of a stack.

        Args:
            losses_of: makes them of logits [N, V], where the mask token's is -inf, and targets.
        """
        with self.precision(index).autocast(self.device):
            logits = self.ends(index).predictions(hidden, self.stack(index).norm, ROWS_MULTIPLE)
        return losses_of(logits, targets)

    def predict(self, path: Sequence[int], inputs: Tensor, segments: Tensor, fraction: Tensor, where: Tensor) -> Tensor:
        """Compute logits [N, V] of possible tokens at flat positions [N] of ids [B, T]; the mask's is -inf."""

        def read(index: int, hidden: Tensor) -> Tensor:
            chosen = hidden.flatten(0, 1).index_select(0, where.to(self.device))
            return self.ends(index).predictions(chosen, self.stack(index).norm)

        return self._read_out(path, inputs, segments, fraction, read)

    def logits(self, path: Sequence[int], inputs: Tensor, segments: Tensor, fraction: Tensor) -> Tensor:
        """Compute logits [B, T, V] of ids [B, T] at the end of a path, as the head gives them."""

        def read(index: int, hidden: Tensor) -> Tensor:
            return self.ends(index).logits(hidden, self.stack(index).norm)

        return self._read_out(path, inputs, segments, fraction, read)

    def _read_out(
        self,
        path: Sequence[int],
        inputs: Tensor,
        segments: Tensor,
        fraction: Tensor,
        read: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Return the result of ``read`` on the hidden states [B, T, D] at the exit of a path's last stack."""
        hidden, context = self.embed(path[0], inputs, fraction), self.context(segments)
        for index in path:
            with self.visiting(index):
                hidden = self.through(index, hidden, context)
                if index == path[-1]:
                    with self.precision(index).autocast(self.device):
                        return read(index, hidden)
        raise AssertionError("a path has stacks")

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """List what trains now, by name: ``embed_tokens.weight``, ``stacks.0.layers.0...``, ``adapters.0...``."""
        found = [
            (name, parameter)
            for ends in self._ends.values()
            for name, parameter in ends.named_parameters()
            if parameter.requires_grad
        ]
        for index, resident in sorted(self._residents.items()):
            own = [(f"stacks.{index}.{name}", each) for name, each in resident.own.items()]
            adapters = [(f"adapters.{index}.{name}", each) for name, each in resident.adapter_weights.items()]
            found += [
                (name, each) for name, each in own + adapters if isinstance(each, nn.Parameter) and each.requires_grad
            ]
        return found
