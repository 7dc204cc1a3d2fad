"""Boundaries in an LMDB environment."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import xxhash
from attrs import evolve
from torch import Tensor

from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Key,
    Layout,
    MissingEntries,
)
from stackwise_lmdb.environment import Damaged, Environment, Gone, NoRoom, Reader, Writer, attach, remove
from stackwise_lmdb.options import LmdbOptions

KEY, HEAD = 16, 32
"""An entry is its key, an xxh3-128 of key and activation, and from byte 32 on the activation."""

Found = TypeVar("Found")


class LmdbStore(ActivationStore):
    """An environment, and the entries that wait to be written to it in one transaction.

    What isn't wanted any more is hidden at once, and deleted in the next transaction. The order of use is this store's
    own: what it has not used yet goes first, in the order of writing.
    """

    def __init__(self, directory: Path, layout: Layout, capacity: int | None, batch_entries: int) -> None:
        self._directory, self._layout = directory, layout
        self._room = None if capacity is None else capacity // layout.bytes_per_entry
        self._batch_entries = layout.written_together(batch_entries)
        if self._room is not None:
            self._batch_entries = max(1, min(self._batch_entries, self._room // 4))
        self._waiting: dict[Key, bytearray] = {}
        self._hidden: set[Key] = set()
        self._used: OrderedDict[Key, None] = OrderedDict()  # the least recently used first
        self._unused_from = 0  # all entries of lower serial numbers are used, hidden or deleted
        self._environment: Environment | None = None
        self._refused = False  # it is damaged, and not ours to delete
        self._stats = CacheStats()
        self._read(Reader.count, 0)
        if self._room is not None:
            self._evict(self._room)

    def _attach(self, create: bool) -> Environment | None:
        """Open the environment if it exists or should be created. A damaged one is deleted and counted."""
        if self._environment is not None and self._environment.alive:
            return self._environment
        self._let_go()
        while not self._refused or create:
            try:
                self._environment = attach(self._directory, self._layout, create)
                return self._environment
            except Gone:
                return None
            except Damaged:
                self._damaged(create)
        return None

    def _damaged(self, create: bool) -> None:
        self._stats.damaged += 1
        self._let_go()
        try:
            remove(self._directory)
        except PermissionError:  # others may mend it; here it is as if it weren't there
            if create:
                raise
            self._refused = True

    def _let_go(self) -> None:
        """Forget the environment and what is known of it."""
        self._environment = None
        self._hidden.clear()
        self._used = OrderedDict((key, None) for key in self._used if key in self._waiting)
        self._unused_from = 0

    def _read(self, work: Callable[[Reader], Found], nothing: Found) -> Found:
        """Return the result of ``work`` on the environment, or ``nothing`` if there is none."""
        while environment := self._attach(create=False):
            try:
                return environment.read(work)
            except Damaged:
                self._damaged(create=False)
            except Gone:
                self._let_go()
        return nothing

    def _write(self) -> None:
        """Write what waits and delete what is hidden, in one transaction."""

        def work(writer: Writer) -> None:
            for key in self._hidden:
                writer.delete(key)
            writer.append(self._waiting)

        while self._waiting or self._hidden:
            create = bool(self._waiting)
            try:
                environment = self._attach(create)
                if environment is None or (environment.readonly and not create):
                    if create:  # another process has deleted what was just made
                        continue
                    return
                environment.write(work)
            except NoRoom:  # nor is there for deleting, which writes, too: what is hidden stays so
                for key in self._waiting:
                    del self._used[key]
                self._stats.evicted += len(self._waiting)
                self._waiting.clear()
                return
            except Damaged:
                self._damaged(create)
            except Gone:
                self._let_go()
            else:
                self._waiting.clear()
                self._hidden.clear()

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        there = {key for key, found in zip(keys, self._there(keys), strict=True) if found}
        for key, entry in zip(keys, entries.detach().cpu(), strict=True):
            if key in there:
                self._stats.duplicates += 1
                continue
            self._waiting[key] = _packed(key, entry)
            self._use(key)
            self._stats.writes += 1
            there.add(key)
            if self._room is not None:
                there.difference_update(self._evict(self._room))
            if len(self._waiting) >= self._batch_entries:
                self._write()
                if key not in self._used:  # there was no room for them on the disk
                    there = {key for key, found in zip(keys, self._there(keys), strict=True) if found}

    def get(self, keys: Sequence[Key]) -> Tensor:
        entries = torch.empty((len(keys), *self._layout.shape), dtype=self._layout.torch_dtype)
        self.read_into(keys, entries)
        return entries

    def read_into(self, keys: Sequence[Key], entries: Tensor) -> None:
        if entries.device.type != "cpu" or not entries.is_contiguous():
            super().read_into(keys, entries)
            return
        rows = entries.detach().flatten(1).view(torch.uint8).numpy()
        written = [(row, key) for row, key in enumerate(keys) if key not in self._waiting]

        def fill(reader: Reader) -> dict[Key, bool]:
            """Read what is written; the keys that have no readable entry, and whether that is by damage."""
            lost = {}
            for row, key in written:
                entry = None if key in self._hidden else reader.entry(key)
                if entry is None or not _unpacked(key, entry, rows[row]):
                    lost[key] = entry is not None
            return lost

        lost = self._read(fill, {key: False for _, key in written}) if written else {}
        for key, damaged in lost.items():
            if damaged:
                self._stats.damaged += 1
                self._hide(key)
        if lost:
            raise MissingEntries(list(lost))
        for row, key in enumerate(keys):
            if key in self._waiting:
                _unpacked(key, self._waiting[key], rows[row])
            self._use(key)
        self._stats.reads += len(keys)

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        there = self._there(keys)
        for key, found in zip(keys, there, strict=True):
            if found:
                self._use(key)
        return there

    def _there(self, keys: Sequence[Key]) -> list[bool]:
        def look(reader: Reader) -> list[bool]:
            return [key not in self._hidden and reader.has(key) for key in keys]

        written = self._read(look, [False] * len(keys)) if keys else []
        return [found or key in self._waiting for key, found in zip(keys, written, strict=True)]

    def _use(self, key: Key) -> None:
        self._used[key] = None
        self._used.move_to_end(key)

    def _hide(self, key: Key) -> None:
        """Take an entry out of the store. It goes from the disk with the next transaction."""
        self._used.pop(key, None)
        if self._waiting.pop(key, None) is None:
            self._hidden.add(key)

    def _evict(self, most: int) -> list[Key]:
        """Hide the least recently used entries until at most so many are left, and return their keys."""
        surplus = max(0, self._count() - most)
        if not surplus:
            return []
        victims = self._unused(surplus)
        victims += islice(self._used, surplus - len(victims))
        for key in victims:
            self._hide(key)
        self._stats.evicted += len(victims)
        return victims

    def _unused(self, most: int) -> list[Key]:
        """List entries that this store has not used, in the order of writing."""

        def find(reader: Reader) -> tuple[list[Key], int]:
            keys: list[Key] = []

            def wanted(entry: memoryview) -> bool:
                key = bytes(entry[:KEY])
                if key not in self._used and key not in self._hidden and reader.has(key):
                    if len(keys) == most:
                        return False
                    keys.append(key)
                return True

            return keys, reader.written_from(self._unused_from, wanted)

        nothing: list[Key] = []
        keys, self._unused_from = self._read(find, (nothing, 0))
        return keys

    def _count(self) -> int:
        def count(reader: Reader) -> int:
            return reader.count() - sum(reader.has(key) for key in self._hidden)

        return self._read(count, 0) + len(self._waiting)

    def keys(self) -> Iterator[Key]:
        nothing: list[Key] = []
        written = self._read(Reader.keys, nothing)
        return iter([*self._waiting, *(key for key in written if key not in self._hidden)])

    def shrink(self, most: int) -> None:
        self._evict(most // self._layout.bytes_per_entry)
        self._write()

    def discard(self, keys: Iterable[Key]) -> None:
        keys = list(keys)
        for key, found in zip(keys, self._there(keys), strict=True):
            if found:
                self._hide(key)
        if len(self._hidden) >= self._batch_entries:  # to count is to look each of them up
            self._write()

    def flush(self) -> None:
        self._write()
        if self._environment is not None:
            self._environment.sync()

    def drop(self) -> None:
        self._waiting.clear()
        self._let_go()
        remove(self._directory)

    def close(self) -> None:
        self.flush()
        self._let_go()

    def stats(self) -> CacheStats:
        entries = self._count()
        return evolve(self._stats, entries=entries, bytes=entries * self._layout.bytes_per_entry)


def _packed(key: Key, activation: Tensor) -> bytearray:
    """Return an entry as the bytes that are written."""
    packed = bytearray(HEAD + activation.nbytes)
    payload = np.frombuffer(packed, dtype=np.uint8)[HEAD:]
    payload[:] = activation.contiguous().view(torch.uint8).flatten().numpy()
    packed[:HEAD] = key + _checksum(key, payload)
    return packed


def _unpacked(key: Key, packed: bytearray | memoryview, into: np.ndarray) -> bool:
    """Copy an entry's activation into uint8 [bytes], and return whether it is what was written under this key."""
    if len(packed) != HEAD + into.size:
        return False
    into[:] = np.frombuffer(packed, dtype=np.uint8, offset=HEAD)
    return bytes(packed[:HEAD]) == key + _checksum(key, into)  # of the copy: the map may change under us


def _checksum(key: Key, activation: np.ndarray) -> bytes:
    digest = xxhash.xxh3_128(key)
    digest.update(activation.data)
    return digest.digest()


class Lmdb(CacheBackend):
    """Backend as large as the disk, in one file that grows and is reused, but never shrinks."""

    options: LmdbOptions
    durable = True
    shrinks = False

    def buffer_bytes(self, layout: Layout) -> int:
        return layout.written_together(self.options.batch_entries) * layout.bytes_per_entry

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> LmdbStore:
        return LmdbStore(directory, layout, capacity, self.options.batch_entries)
