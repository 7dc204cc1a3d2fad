"""Placement of stacks: which are in memory, at which precision, and what of them trains.

Of the stacks of the path in use some are in memory for as long as it is. The others, *streamed*, are read when the
hidden states of a whole window pass them, and leave the memory before the next one comes: however deep the rack is, one
of them is there at a time. Where each stack has its own embedding and head, those of the path in use are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from attrs import frozen
from torch import Tensor, nn

from stackwise_core.engine.offload.offload import Offload, weights_entry
from stackwise_core.engine.process.allocator import trim_heap
from stackwise_core.engine.rack.formats import Role
from stackwise_core.engine.rack.number_range import FINITE
from stackwise_core.engine.rack.rack import Ends, Stack, new_ends
from stackwise_core.engine.rack.stack_loader import Beginning, Resident, StackLoader, Start
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.precision import Precision

TRIM_AFTER = 16 << 20
"""Bytes of stacks that leave before the heap is trimmed: each time costs all pages that the next step takes anew."""


@frozen
class Arrangement:
    """Arrangement of the stacks of the path in use: how each is to be held, wherever it is."""

    path: tuple[int, ...] = ()
    active: frozenset[int] = frozenset()
    start: Start = "random"
    copied: Mapping[int, int | None] = MappingProxyType({})
    """The stack that each begins as a copy of, if ``start`` says so."""
    adapters: Mapping[int, Collection[str]] = MappingProxyType({})
    streamed: frozenset[int] = frozenset()


class Placement:
    """The rack as it stands in memory: its ends, and the stacks of the path in use.

    Args:
        loader: brings stacks into memory.
    """

    def __init__(self, loader: StackLoader, mask_id: int) -> None:
        self.loader, self.spec, self.seed, self.device = loader, loader.spec, loader.seed, loader.device
        self._arranged = Arrangement()
        self.compiles = False
        """Whether blocks run compiled, where precision and adapters can be."""
        self._phase: Phase | None = None
        self._offload: Offload | None = None
        self._residents: dict[int, Resident] = {}
        self._left = 0
        """Bytes of streamed stacks that left since the heap was trimmed."""
        self._written: frozenset[int] = frozenset()
        """Stacks in memory that are as in their masters' files, and hold no adapters."""
        self._norms: dict[int, Tensor] = {}
        """Weights of exit norms as in the files of masters, by stack."""
        self._mask_id = mask_id
        self._ends: dict[int, Ends] = {}
        self._keeps_all_ends = self.spec.ends == "shared"

    def place(self, phase: Phase, *, streams: bool = False, offload: Offload | None = None) -> None:
        """Bring every stack of a phase's path to the state that it has there, and freeze all but what trains.

        Args:
            streams: whether its trunk is streamed.
            offload: where the training state of stacks waits; all of them are streamed then. None: they stay in
                memory.
        """
        streamed = phase.path if offload is not None else phase.frozen_prefix if streams else ()
        self._phase, self._offload = phase, offload
        copied = {stack: phase.copied(stack) for stack in phase.path} if phase.start == "copy" else {}
        adapters = phase.trains_adapters
        self._bring(Arrangement(phase.path, phase.trains, phase.start, copied, adapters, frozenset(streamed)))
        for index in phase.path:
            if index not in streamed:
                self._unfreeze(index, phase)
        below, above = self.ends(phase.path[0]), self.ends(phase.path[-1])
        for ends in self._ends.values():
            ends.requires_grad_(False)
        for name, parameter in below.named_parameters():
            if name.startswith("embed_"):
                parameter.requires_grad_(phase.embedding)
        if phase.head:
            (above.embed_tokens if above.lm_head is None else above.lm_head).requires_grad_()

    def _unfreeze(self, index: int, phase: Phase) -> None:
        """Unfreeze what a phase trains of a stack that is in memory, and nothing else of it."""
        resident = self._residents[index]
        trained = phase.trains_adapters.get(index, ())
        chosen = [each for name in trained for each in self._trainable(index, name)]
        resident.stack.requires_grad_(False)
        for parameter in [*chosen, *(resident.own.values() if index in phase.trains else ())]:
            parameter.requires_grad_()
        resident.stack.norm.requires_grad_(index == phase.exit_norm)

    def _trainable(self, index: int, name: str) -> list[nn.Parameter]:
        """Return the weights of a stack's adapter that the adapter made trainable."""
        adapter = self.loader.formats.adapters[name]
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
        adapters: Mapping[int, Collection[str]] = MappingProxyType({}),
        streamed: Collection[int] = (),
    ) -> None:
        """Bring the stacks of a path into memory, with their adapters, and no others.

        Args:
            active: stacks to prepare for training; the others are frozen.
            adapters: names of those that a stack has in any case, fresh ones if need be.
            streamed: stacks of the path that aren't kept in memory, but read each time they are visited.
        """
        self._phase, self._offload = None, None
        self._bring(
            Arrangement(tuple(path), frozenset(active), adapters=adapters, streamed=frozenset(streamed)),
        )

    def _bring(self, arranged: Arrangement) -> None:
        self._arranged, path, streamed = arranged, arranged.path, arranged.streamed
        if not self._keeps_all_ends:
            for owner in set(self._ends) - set(path):
                del self._ends[owner]
        for index in sorted(self._written & streamed - arranged.active):
            if self.loader.formats.precision(index, "trunk").quantises:
                self._bring_one(index)  # its codes are written now, and the masters needn't be read for them
        for index in set(self._residents) - (set(path) - set(streamed)):
            del self._residents[index]
        for index in path:
            if index not in streamed:
                self._bring_one(index)
            elif index not in arranged.active and not self.loader.masters.has_stack(index):
                with self.visiting(index):
                    pass  # its masters are written now, and so it can be read again, or copied
        self._written = frozenset()  # what trains from here on differs

    def _bring_one(self, index: int) -> None:
        """Bring a stack of the path into memory, as it is to be."""
        role: Role = "active" if index in self._arranged.active else "trunk"
        names = tuple(sorted({*self.loader.masters.adapters(index), *self._arranged.adapters.get(index, ())}))
        resident = self._residents.get(index)
        if resident is None or (resident.role, resident.adapters) != (role, names):
            masters = None
            if index in self._written and resident is not None:
                masters = {name: each.detach() for name, each in resident.own.items()}
            self._residents.pop(index, None)  # before the next one takes its room
            resident = None
            arranged, entry = self._arranged, weights_entry(index)
            has_changed = self._offload is not None and entry in self._offload
            trained = self._offload.read_to(entry, self.device) if self._offload is not None and has_changed else {}
            below = arranged.path[: arranged.path.index(index)]
            beginning = Beginning(arranged.start, arranged.copied.get(index), below, self._norms)
            self._residents[index] = self.loader.load(index, role, names, beginning, trained, masters)
            if self._phase is not None and index in self._phase.path and index in arranged.streamed:
                self._unfreeze(index, self._phase)

    @contextmanager
    def visiting(self, index: int) -> Iterator[None]:
        """Keep a stack of the path in memory while this lasts; a streamed one is read for it."""
        if index in self._residents:
            yield
            return
        self._bring_one(index)
        try:
            yield
        finally:
            stack = self._residents.pop(index).stack
            self._left += sum(each.nbytes for each in chain(stack.parameters(), stack.buffers()))
            del stack
            if self._left >= TRIM_AFTER:
                trim_heap()
                self._left = 0

    def were_written(self, stacks: Collection[int]) -> None:
        """Take note that masters of stacks were just written; those still in memory needn't be read for the trunk."""
        self._forget(stacks)
        written = [index for index in stacks if index in self._residents and self._residents[index].role == "active"]
        self._written = frozenset(index for index in written if not self._residents[index].adapters)
        self._norms |= {index: self._residents[index].own["norm.weight"].detach().clone() for index in written}

    def _forget(self, stacks: Collection[int]) -> None:
        """Forget that masters of stacks are as they were."""
        self._written -= set(stacks)
        for index in stacks:
            self._norms.pop(index, None)

    def let_go(self, stacks: Collection[int]) -> None:
        """Forget stacks, which are read again when they are next needed."""
        for index in stacks:
            self._residents.pop(index, None)
        self._forget(stacks)

    def ends(self, index: int) -> Ends:
        """Return the embedding below a stack and the head above it."""
        return self._ends_of(index if self.spec.ends == "per_stack" else 0)

    def _ends_of(self, owner: int) -> Ends:
        """Return those of an owner, which are read if they aren't in memory, or begin anew."""
        if owner not in self._ends:
            self._begin_ends(owner, {})
        return self._ends[owner]

    def _begin_ends(self, owner: int, given: Mapping[str, Tensor]) -> None:
        """Bring those of an owner into memory: from what is given, else as they were written, else new."""
        written = None
        if self.spec.ends == "per_stack":
            written = self.loader.masters.read_ends_of(owner)
            _check_finite(written or {}, owner)
        ends = new_ends(self.spec, self._mask_id, self.seed, {**(written or {}), **given})
        self._ends[owner] = ends.to(self.device).requires_grad_(False)

    def let_go_of_ends(self, owner: int) -> None:
        """Forget a stack's own embedding and head, which are read again when they are next needed."""
        del self._ends[owner]

    @property
    def owners(self) -> tuple[int | None, ...]:
        """Stacks that have an embedding and a head of their own; None alone where all share them."""
        return tuple(range(self.spec.stacks)) if self.spec.ends == "per_stack" else (None,)

    def keep_all_ends(self) -> None:
        """Bring all embeddings and heads into memory, and keep them there."""
        self._keeps_all_ends = True
        for owner in self.owners:
            self._ends_of(owner or 0)

    def load_written_ends(self) -> None:
        """Load embedding and head as they were written; those of single stacks are read when they are needed.

        Raises:
            StackwiseError: a file isn't what was written, or a weight isn't finite.
        """
        if self.spec.ends == "per_stack":
            self._ends.clear()
        elif (written := self.loader.masters.read_ends_of(None)) is not None:
            self.load_ends({None: written})

    def load_ends(self, given: Mapping[int | None, Mapping[str, Tensor]]) -> None:
        """Load embedding and head by their owner; a part that isn't given stays as it begins.

        Raises:
            OutOfRange: a weight isn't finite.
        """
        for owner, tensors in given.items():
            _check_finite(tensors, owner)
            if (owner or 0) in self._ends:
                self._ends[owner or 0].load_state_dict(tensors, strict=False)
            else:
                self._begin_ends(owner or 0, tensors)

    @property
    def shared_ends(self) -> Ends:
        """Any of them, for what is the same in all."""
        return next(iter(self._ends.values())) if self._ends else self._ends_of(0)

    @property
    def streams(self) -> bool:
        """Whether a stack of the path in use is read each time that it is visited."""
        return bool(self._arranged.streamed)

    def all_ends(self) -> Iterator[tuple[int | None, Ends]]:
        """Yield each pair of ends in memory and the stack whose own it is, None where all share it."""
        for owner, ends in self._ends.items():
            yield (owner if self.spec.ends == "per_stack" else None), ends

    def __contains__(self, index: int) -> bool:
        return index in self._residents

    def stack(self, index: int) -> Stack:
        """Return the module of a stack of the path in use."""
        return self._residents[index].stack

    def adapters(self, index: int) -> list[Adapter]:
        """List the adapters on a stack of the path in use."""
        return [self.loader.formats.adapters[name] for name in self._residents[index].adapters]

    def adapter_weights(self, index: int) -> dict[str, nn.Parameter]:
        """Return the weights of all adapters of a stack of the path in use, by name."""
        return self._residents[index].adapter_weights

    def precision(self, index: int) -> Precision:
        """Return the precision that a stack of the path in use is at."""
        return self.loader.formats.precision(index, "active" if index in self._arranged.active else "trunk")

    def is_compiled(self, index: int) -> bool:
        """Return whether the blocks of a stack of the path in use run compiled."""
        return self._can_be_compiled(index, self._residents[index].adapters)

    def _can_be_compiled(self, index: int, adapters: Iterable[str]) -> bool:
        of_adapters = (self.loader.formats.adapters[name].compiles for name in adapters)
        return self.compiles and self.precision(index).compiles and all(of_adapters)

    def fingerprint(self, index: int) -> str:
        """Compute a hash of all that decides a frozen stack's output but software.

        That is its masters, adapters and precision, and whether its blocks run compiled.

        It is taken of the files' checksums, so that the stack needn't be read.
        """
        precision = self.precision(index)
        adapters = {name: self.loader.formats.adapters[name].described for name in self.loader.masters.adapters(index)}
        said = [self.spec.blocks[index], self.loader.masters.checksums(index), precision.described, adapters]
        if self._can_be_compiled(index, adapters):
            said.append("compiled")
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

    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``training_state`` gave.

        Raises:
            StackwiseError: it is that of other tensors.
        """
        load_parameters(self.training_state().items(), tensors)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return a stack's own weights as it holds them, by name."""
        return self._residents[index].own

    def save_adapter(self, index: int, name: str, directory: Path) -> None:
        """Write a stack's adapter into a directory."""
        self.loader.formats.adapters[name].save(self.stack(index), name, directory)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """List what trains now, by name: ``embed_tokens.weight``, ``stacks.0.layers.0...``, ``adapters.0...``."""
        found = self.trainable_ends()
        for index in sorted(self._residents):
            found += self.trainable_of(index)
        return found

    def trainable_ends(self) -> list[tuple[str, nn.Parameter]]:
        """List what trains of embedding and head, by name."""
        return [
            (name, parameter)
            for ends in self._ends.values()
            for name, parameter in ends.named_parameters()
            if parameter.requires_grad
        ]

    def trainable_of(self, index: int) -> list[tuple[str, nn.Parameter]]:
        """List what trains of a stack that is in memory, by name."""
        resident = self._residents[index]
        own = [(f"stacks.{index}.{name}", each) for name, each in resident.own.items()]
        adapters = [(f"adapters.{index}.{name}", each) for name, each in resident.adapter_weights.items()]
        return [(name, each) for name, each in own + adapters if isinstance(each, nn.Parameter) and each.requires_grad]

    def changes_of(self, index: int) -> dict[str, Tensor]:
        """Return what training may change of a stack that is in memory, by name, its buffers included."""
        resident = self._residents[index]
        own = resident.own if resident.role == "active" else {}
        adapters = {name: each for name, each in resident.adapter_weights.items() if each.requires_grad}
        return {**own, **adapters}


def _check_finite(ends: Mapping[str, Tensor], owner: int | None) -> None:
    """Refuse embedding and head of an owner with a weight that isn't finite."""
    for name, tensor in ends.items():
        FINITE.check(tensor, name if owner is None else f"stack {owner}, {name}")


@torch.no_grad()
def load_parameters(into: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names.

    Raises:
        StackwiseError: names, number formats or shapes differ.
    """
    now = dict(into)
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
