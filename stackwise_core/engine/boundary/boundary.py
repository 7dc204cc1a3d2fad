"""Boundaries: the trunk's output for any draw, computed once, kept in a store, and never stale.

A store belongs to a namespace, a hash of all that a boundary depends on but the draw; within it a key is a hash of the
draw. So what was computed under other weights, masks or settings can't be found, and needn't be invalidated.

A window is filled stack by stack: each stack of the trunk is visited once, and all of the window's chunks pass it.
Between two stacks a boundary is rounded to the store's number format, which is also how it is held meanwhile: its bits
are the same whether it came from the store, from the boundary below, or from the tokens.

Where a GPU computes, a thread reads what the boundary below has, puts what chunks have become, and reads batches a step
ahead, all while the main thread computes. Stores are called by one of the two at a time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import xxhash
from attrs import define
from torch import Tensor

from stackwise_core.engine.boundary.background import Background, Job
from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.engine.boundary.read_ahead import ReadAhead
from stackwise_core.engine.boundary.stores import Stores
from stackwise_core.engine.draws.draws import Drawer, Draws
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.process.allocator import trim_heap
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.not_finite import first_not_finite
from stackwise_core.engine.rack.number_range import OutOfRange
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheStats, Key, Layout, MissingEntries
from stackwise_core.interfaces.component import ContractError


def draw_keys(draws: Draws, with_time: bool) -> list[Key]:
    """Return the key of each sequence: 16 bytes, xxh3-128 of its input ids, mask bits, segments.

    Its time is in it where the network gets that.
    """
    batch, tokens = draws.inputs.shape
    mask = np.zeros(batch * tokens, dtype=bool)
    mask[draws.masked.numpy()] = True
    bits = np.packbits(mask.reshape(batch, tokens), axis=1)
    ids = draws.inputs.numpy().astype("<i4")
    segments = draws.segments.numpy().astype("<i4")
    times = draws.fraction.numpy().astype("<f8")[:, None] if with_time else np.empty((batch, 0))
    return [
        xxhash.xxh3_128_digest(b"".join(part[row].tobytes() for part in (ids, bits, segments, times)))
        for row in range(batch)
    ]


@define
class BoundaryCounts:
    """Counts of a phase's boundaries, in activations."""

    wanted: int = 0
    """Number that were asked for, a window at a time."""
    found: int = 0
    """Number of these that were in the store already."""
    repeated: int = 0
    """Number of these equal to one of another sequence, which so serves both."""
    computed: int = 0
    read: int = 0
    """Number that were read for training steps."""


@define(eq=False)
class _Part:
    """A chunk on its way through the trunk."""

    draws: Draws
    """Draws of a whole chunk: where there are fewer samples, they are repeated."""
    keys: list[Key]
    """Keys of its samples."""
    rows: slice
    """Place of its entries among those of all the chunks that go with it."""
    behind: int = 0
    """Number of the trunk's stacks that it has passed before the first pass."""
    from_below: Job[bool] | None = None
    """Reading of its entries from the boundary below, if that has them; whether it did."""

    @property
    def has_arrived(self) -> bool:
        """Whether it can pass the next stack; False where the boundary below had lost an entry of it."""
        return self.from_below is None or self.from_below.result()


class Boundary:
    """The output of a frozen trunk for a phase's draws.

    Args:
        store: keeps activations; None: each window's are held in memory until the next window.
        layout: of the store's entries, or of those that are held.
        stores: those of the run, among which this one is.
        below: the boundary of the phase before, where its trunk is the lower part of this one.
        keep_below: whether the one below stays when this one is whole.
        provenance: all that its bits depend on but the draws; two boundaries of the same are the same.
        device_room: bytes of the device's own memory that a window may have there.
        beside: whether stores are read and written in a thread beside the main one; None: where a GPU computes.
    """

    def __init__(
        self,
        trunk: tuple[int, ...],
        forward: Forward,
        drawer: Drawer,
        order: Order,
        store: ActivationStore | None,
        layout: Layout,
        stores: Stores | None = None,
        below: Boundary | None = None,
        keep_below: bool = False,
        provenance: Mapping[str, object] | None = None,
        device_room: int = 0,
        beside: bool | None = None,
    ) -> None:
        self.trunk, self._forward, self._drawer, self._order = trunk, forward, drawer, order
        self._store, self.layout, self._stores = store, layout, stores
        self._below, self._keep_below, self.provenance = below, keep_below, provenance
        self._held: dict[Key, Tensor] = {}
        self._equal: set[Key] = set()
        """Keys that more than one sequence has."""
        self._announced: list[tuple[Draws, list[Key]]] = []
        self._seen: dict[tuple[int, int], int] = {}
        """Chunks that were made available, by number and draw, and how many entries the store had lost by then."""
        self._was_empty = self.is_empty
        self._refused = 0
        """Number of entries that weren't put, since the store is another run's."""
        self.counts = BoundaryCounts()
        self._device_room = device_room
        # On a CPU a thread has nothing to give: it takes the cores that compute (docs/log.md).
        self._beside = forward.device.type == "cuda" if beside is None else beside
        self._background = Background(forward.device, has_thread=self._beside)
        self._ahead: ReadAhead | None = None

    @property
    def is_stored(self) -> bool:
        """Whether a store keeps activations beyond their window."""
        return self._store is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is no activation in its store."""
        return not self._all_stats().entries

    def fill_window(self, window: Iterable[int], number: int) -> Iterator[tuple[int, int]]:
        """Make the boundaries of a window's chunks available, computing what isn't.

        Gives how many times a chunk has passed a stack, and how many times one will; nothing where all is there.
        """
        self._stop_reading()
        self._held.clear()
        parts, whole, lost = list[_Part](), list[int](), self._lost
        coming: set[Key] = set()
        for chunk in window:
            part = self._lacking(chunk, number, parts[-1].rows.stop if parts else 0, coming)
            if part is None:
                whole.append(chunk)
            else:
                parts.append(part)
                coming.update(part.keys)
        if not parts:
            return
        entries = self._room(parts)
        try:
            yield from self._pass_trunk(parts, entries, keeps=True)
        finally:
            self._background.stop()
        for part in parts:  # once all are put, since a later one may drive out an earlier one
            self._hold(part, entries)
        if self._lost != lost:
            yield from self._hold_driven_out(whole, number)
        trim_heap()

    def _hold_driven_out(self, chunks: Iterable[int], number: int) -> Iterator[tuple[int, int]]:
        """Compute those of a window's chunks again that were there, and had to go for others of it."""
        parts: list[_Part] = []
        for chunk in chunks:
            part = self._part(chunk, number, parts[-1].rows.stop if parts else 0)
            gone = self._contains(part.keys).count(False)
            if gone:
                parts.append(part)
                self.counts.found -= gone
        if parts:
            entries = self._room(parts)
            yield from self._pass_trunk(parts, entries)
            for part in parts:  # to put them would drive out others
                self._hold(part, entries)

    def _lacking(self, chunk: int, number: int, first: int, coming: Container[Key]) -> _Part | None:
        """Return a chunk of which an entry is to be computed, with its entries from a row on.

        None where all of them are there.

        Args:
            coming: keys of chunks before it that are to be computed, too.
        """
        size, lost, seen = len(self._order.chunk(chunk)), self._lost, self._seen.get((chunk, number))
        self.counts.wanted += size
        if self._store is not None:
            self._seen[chunk, number] = lost
        if self._store is not None and seen == lost:  # nothing can have gone since
            self.counts.found += size
            return None
        part = self._part(chunk, number, first)
        there = self._contains(part.keys)
        self.counts.found += sum(there)
        if seen is None and self._was_empty:  # nobody made it yet
            others = set[Key]()
            for key, found in zip(part.keys, there, strict=True):
                if found or key in coming or key in others:
                    self._equal.add(key)
                    self.counts.repeated += 1
                others.add(key)
        return None if all(there) else part

    @property
    def _lost(self) -> int:
        """Number of entries that the store has given up so far, or never got."""
        stats = self._all_stats()
        return stats.evicted + stats.damaged + self._refused

    def _part(self, chunk: int, number: int, first: int) -> _Part:
        samples = self._order.chunk(chunk)
        # The last chunk is filled up, so that an activation's bits don't depend on how many there are beside it.
        draws = self._drawer.draw(np.resize(samples, self._order.chunk_size), number)
        return _Part(draws, self._keys(draws)[: len(samples)], slice(first, first + len(samples)))

    def _room(self, parts: Sequence[_Part]) -> Tensor:
        """Return entries [n, T, row], not filled yet, of some chunks; on the device where there is room for them."""
        shape, dtype, device = (parts[-1].rows.stop, *self.layout.shape), self.layout.torch_dtype, self._forward.device
        if device.type == "cpu":
            return torch.empty(shape, dtype=dtype)
        if parts[-1].rows.stop * self.layout.bytes_per_entry <= self._device_room:
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")

    def _pass_trunk(self, parts: Sequence[_Part], entries: Tensor, *, keeps: bool = False) -> Iterator[tuple[int, int]]:
        """Fill entries [n, T, row], stack by stack.

        Args:
            keeps: whether what is done goes into the store, which has all of it in the end.
        """
        for part in parts:
            self._take_from_below(part, entries)
        putting: list[Job[None]] = []
        done, left = 0, list(parts)
        while left:
            total = done + sum(len(self.trunk) - part.behind for part in left)
            for place, index in enumerate(self.trunk):
                arriving = [part for part in left if part.behind <= place]
                if not arriving:
                    continue
                with self._forward.placement.visiting(index):
                    for part in arriving:
                        if not part.has_arrived:
                            continue
                        self._pass(part, place, entries)
                        if place == len(self.trunk) - 1:
                            left.remove(part)
                            self.counts.computed += len(part.keys)
                            if keeps:
                                work = partial(self._keep, part, entries)
                                putting.append(self._background.submit(work, reads_host=entries.device.type == "cpu"))
                        for job in putting:
                            job.raise_error()
                        done += 1
                        yield done, total
            for part in left:  # the boundary below had lost them: from the tokens on
                part.behind, part.from_below = 0, None
        for job in putting:
            job.result()

    @torch.no_grad()
    def _pass(self, part: _Part, place: int, entries: Tensor) -> None:
        """Pass a chunk through a stack of the trunk."""
        forward, index = self._forward, self.trunk[place]
        if place:
            hidden = decode(entries[part.rows].to(forward.device, non_blocking=True), self.layout)
            if len(part.keys) < len(part.draws.samples):
                hidden = hidden[torch.arange(len(part.draws.samples)) % len(part.keys)]
        else:
            hidden = forward.embed(index, part.draws.inputs, part.draws.fraction)
        hidden = forward.through(index, hidden, forward.context(part.draws.segments))
        entries[part.rows].copy_(self._encoded(hidden, place, part)[: len(part.keys)], non_blocking=True)

    def _encoded(self, hidden: Tensor, place: int, part: _Part) -> Tensor:
        """Return entries [n, T, row] of what leaves a stack of the trunk.

        Raises:
            StackwiseError: it isn't finite, or the store's format can't hold it.
        """
        try:
            return encode(hidden, self.layout, f"the boundary above stack {self.trunk[place]}")
        except OutOfRange as error:
            found = first_not_finite(self._forward, self.trunk[: place + 1], part.draws)
            raise StackwiseError(found or str(error)) from error

    def _take_from_below(self, part: _Part, entries: Tensor) -> None:
        """Begin with the boundary below, where it has all of a chunk; it is read before anything is put."""
        below = self._below
        if below is not None and below.has(part.keys):
            part.from_below = self._background.submit(partial(below.take, part.keys, entries[part.rows]))
            part.behind = len(below.trunk)

    def _contains(self, keys: list[Key]) -> list[bool]:
        """Return which keys have an entry in the store; none if there is no store."""
        if self._store is None:
            return [False] * len(keys)
        there = self._store.contains(keys)
        if len(there) != len(keys):
            raise self._broken(
                self._store, f"contains() gave {len(there)} answers, expected one for each of {len(keys)}"
            )
        return there

    def _get(self, store: ActivationStore, keys: list[Key]) -> Tensor:
        """Return entries [n, T, row] of a store.

        Raises:
            MissingEntries: it doesn't have all of them.
            ContractError: they aren't of the layout.
        """
        entries, expected = store.get(keys), (len(keys), *self.layout.shape)
        if entries.shape == expected and entries.dtype == self.layout.torch_dtype and entries.device.type == "cpu":
            return entries
        found = f"{entries.dtype} {list(entries.shape)} on {entries.device}".removeprefix("torch.")
        wanted = f"{self.layout.torch_dtype} {list(expected)} on cpu".removeprefix("torch.")
        raise self._broken(store, f"get() gave entries {found}, expected {wanted}")

    def _broken(self, store: ActivationStore, said: str) -> ContractError:
        return ContractError(store if self._stores is None else self._stores.backend, said)

    def _read_into(self, store: ActivationStore, keys: list[Key], entries: Tensor) -> None:
        """Fill entries [n, T, row] from a store.

        Raises:
            MissingEntries, ContractError: as ``_get``.
        """
        if entries.device.type == "cuda" and not store.reads_to_device:
            host = torch.empty(entries.shape, dtype=entries.dtype, pin_memory=True)
            self._read_into(store, keys, host)
            entries.copy_(host, non_blocking=True)
        elif type(store).read_into is ActivationStore.read_into:
            entries.copy_(self._get(store, keys))
        else:
            store.read_into(keys, entries)

    def has(self, keys: list[Key]) -> bool:
        """Return whether the store has entries of all of these keys."""
        return self._store is not None and all(self._contains(keys))

    def take(self, keys: list[Key], entries: Tensor) -> bool:
        """Fill entries [n, T, row] of these keys, and return whether the store has all of them."""
        if self._store is None:
            return False
        try:
            self._read_into(self._store, keys, entries)
        except MissingEntries:
            return False
        return True

    def give_up(self, keys: list[Key]) -> None:
        """Discard entries that the boundary above was made of.

        Nobody asks for them again, except for equal draws.
        """
        if self._store is not None and self._is_ours:
            self._store.discard([key for key in keys if key not in self._equal])

    @property
    def _is_ours(self) -> bool:
        """Whether this run may delete what is in the store, and no other run's it is."""
        return self._store is not None and (self._stores is None or self._stores.is_ours(self._store))

    def _keep(self, part: _Part, entries: Tensor) -> None:
        """Put a chunk's entries into the store; the boundary below won't be asked for them again."""
        if self._store is None:
            return
        there = self._contains(part.keys)
        missing = [place for place, found in enumerate(there) if not found]
        by = len(missing) * self.layout.bytes_per_entry
        if self._stores is not None and not self._stores.may_grow(self._store, by):
            self._refused += len(missing)
            return
        made = entries[part.rows]
        if len(missing) < len(made):
            made = made.index_select(0, torch.tensor(missing, dtype=torch.int64, device=made.device))
        if made.device.type == "cuda" and not self._store.reads_to_device:
            made = torch.empty(made.shape, dtype=made.dtype, pin_memory=True).copy_(made)
        self._store.put([part.keys[place] for place in missing], made)
        if self._below is not None and not self._keep_below:
            self._below.give_up(part.keys)
        if self._stores is not None:
            self._stores.make_room()

    def _hold(self, part: _Part, entries: Tensor) -> None:
        """Keep activations without a store in memory until the next window."""
        kept = self._contains(part.keys)
        for key, entry, found in zip(part.keys, entries[part.rows], kept, strict=True):
            if not found:
                self._held[key] = entry

    def read(self, draws: Draws, number: int) -> Tensor:
        """Return hidden states [B, T, D], fp32, on the rack's device, for a batch of the prepared window.

        Raises:
            StackwiseError: the draws aren't those that the boundary was made under. A boundary that saw fewer masks
                would give away what the loss asks for.
        """
        if self._beside:
            hidden = self._reading.take(draws)
            if hidden is not None:
                self.counts.read += 0 if self._store is None else len(draws.samples)
                return hidden
            self._background.wait()
        keys = next((keys for ahead, keys in self._announced if ahead is draws), None) or self._keys(draws)
        self._announced = [each for each in self._announced if each[0] is not draws]
        if self._store is None:
            self._refuse_others(keys, self._held)
            entries = torch.stack([self._held[key] for key in keys])
        else:
            entries = self._fetch(self._store, draws, keys, number)
        return decode(entries.to(self._forward.device), self.layout)

    def prefetch(self, draws: Draws) -> None:
        """Announce the batch that comes next."""
        if self._beside:
            self._reading.announce(draws)
        elif self._store is not None:
            self._announced.append((draws, self._keys(draws)))
            self._store.prefetch(self._announced[-1][1])

    @property
    def _reading(self) -> ReadAhead:
        """Batches that are read ahead; from the memory of the device, where the store or the window is there."""
        if self._ahead is None:
            held = next(iter(self._held.values()), None)
            on_device = held is not None and held.device.type != "cpu"
            to_device = on_device if self._store is None else self._store.reads_to_device
            device = self._forward.device
            self._ahead = ReadAhead(self.layout, device, self._fill, self._background, to_device=to_device)
        return self._ahead

    def _fill(self, draws: Draws, entries: Tensor) -> bool:
        """Fill entries [n, T, row] of a batch, and return whether all of them are in one place."""
        keys = self._keys(draws)
        held = [key in self._held for key in keys]
        if self._store is None:
            if all(held):
                torch.stack([self._held[key] for key in keys], out=entries)
            return all(held)
        if any(held):
            return False
        self._store.prefetch(keys)
        return self.take(keys, entries)

    def _stop_reading(self) -> None:
        """Forget what was announced, and end the thread that reads it."""
        self._announced.clear()
        if self._ahead is not None:
            self._ahead.forget()
            self._ahead = None
        self._background.stop()

    def _keys(self, draws: Draws) -> list[Key]:
        return draw_keys(draws, with_time=self._forward.placement.spec.time_encoding is not None)

    @staticmethod
    def _refuse_others(keys: Iterable[Key], made: Container[Key]) -> None:
        if not all(key in made for key in keys):
            raise StackwiseError(
                "a batch's masks aren't those that its boundary was made under; its loss would see what it asks for"
            )

    def _fetch(self, store: ActivationStore, draws: Draws, keys: list[Key], number: int) -> Tensor:
        """Return a batch's entries from the store or from memory; chunks of lost ones are computed again."""
        found = {key: self._held[key] for key in keys if key in self._held}
        while wanted := [key for key in keys if key not in found]:
            try:
                entries = self._get(store, wanted)
            except MissingEntries as missing:
                lost = [place for place, key in enumerate(keys) if key in missing.keys]
                if not lost:
                    raise self._broken(store, "get() missed entries that it wasn't asked for") from missing
                for chunk in sorted({int(draws.samples[place]) // self._order.chunk_size for place in lost}):
                    found |= self._again(chunk, number)
                self._refuse_others([keys[place] for place in lost], found)
                continue
            self.counts.read += len(wanted)
            if len(wanted) == len(keys):
                return entries
            found.update(zip(wanted, entries, strict=True))
        return torch.stack([found[key].to(self._forward.device) for key in keys])

    def _again(self, chunk: int, number: int) -> dict[Key, Tensor]:
        """Compute a whole chunk again, and keep it; hold it too, since others of it may have been lost."""
        part = self._part(chunk, number, 0)
        entries = self._room([part])
        for _ in self._pass_trunk([part], entries):
            """One chunk is no progress to speak of."""
        self._keep(part, entries)
        made = dict(zip(part.keys, entries, strict=True))
        self._held |= made
        return made

    def drop_below(self) -> None:
        """Release the boundary below, and delete it unless it is to be kept: this one is whole."""
        self._background.wait()
        if self._below is not None and self._keep_below:
            self._below.rest()
        elif self._below is not None:
            self._below.drop()
        self._below = None

    def rest(self) -> None:
        """Make durable what was put, as the phase is over, or that of the boundary above; nobody reads for now."""
        self._stop_reading()
        if self._store is not None:
            self._store.flush()
        if self._below is not None:
            self._below.rest()
        self._below = None

    def drop(self) -> None:
        """Delete this boundary, unless it belongs to another run."""
        self._stop_reading()
        self._held.clear()
        if self._store is None:
            return
        if self._stores is None:
            self._store.drop()
        else:
            self._stores.release(self._store)
        self._store = None

    def close(self) -> None:
        """Leave what is stored where it is, and stop using it."""
        self._stop_reading()
        self._held.clear()
        if self._store is not None:
            self._store.close()

    def passed_on(self, drawer: Drawer) -> Boundary:
        """Return the same boundary for another phase, which has the store from now on."""
        self._stop_reading()
        store, self._store = self._store, None
        passed_on = Boundary(
            self.trunk,
            self._forward,
            drawer,
            self._order,
            store,
            self.layout,
            self._stores,
            keep_below=self._keep_below,
            provenance=self.provenance,
            device_room=self._device_room,
            beside=self._beside,
        )
        passed_on._equal = self._equal
        return passed_on

    @property
    def losses(self) -> CacheStats:
        """Counts of entries that the run's stores have ``evicted`` or found ``damaged`` in this phase."""
        self._background.wait()
        return CacheStats() if self._stores is None else self._stores.losses

    def _all_stats(self) -> CacheStats:
        return CacheStats() if self._store is None else self._store.stats()
