"""Boundaries in memory."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from attrs import evolve
from torch import Tensor

from stackwise_cache.rows import as_bytes, unfilled
from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Key,
    Layout,
    MissingEntries,
)


class MemoryStore(ActivationStore):
    """A dict from keys to the bytes of entries, the least recently used first."""

    def __init__(self, layout: Layout, capacity: int | None) -> None:
        self._layout, self._capacity = layout, capacity
        self._entries: OrderedDict[Key, np.ndarray] = OrderedDict()
        self._stats = CacheStats()

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        for key, row in zip(keys, as_bytes(entries), strict=True):
            if key in self._entries:
                self._stats.duplicates += 1
                continue
            self._entries[key] = row.copy()  # a view would keep the whole batch alive
            self._stats.writes += 1
            if self._capacity is not None:
                self.shrink(self._capacity)

    def shrink(self, most: int) -> None:
        while self._entries and len(self._entries) * self._layout.bytes_per_entry > most:
            self._entries.popitem(last=False)
            self._stats.evicted += 1

    def get(self, keys: Sequence[Key]) -> Tensor:
        missing = [key for key in keys if key not in self._entries]
        if missing:
            raise MissingEntries(missing)
        self.contains(keys)
        self._stats.reads += len(keys)
        entries, rows = unfilled(len(keys), self._layout)
        for row, key in zip(rows, keys, strict=True):
            row[:] = self._entries[key]
        return entries

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        found = [key in self._entries for key in keys]
        for key, there in zip(keys, found, strict=True):
            if there:
                self._entries.move_to_end(key)
        return found

    def keys(self) -> Iterator[Key]:
        return iter(list(self._entries))

    def discard(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._entries.pop(key, None)

    def flush(self) -> None:
        """Keep everything where it is: nothing here outlives the process."""

    def drop(self) -> None:
        self._entries.clear()

    def stats(self) -> CacheStats:
        entries = len(self._entries)
        return evolve(self._stats, entries=entries, bytes=entries * self._layout.bytes_per_entry)


class Memory(CacheBackend):
    """Backend in memory: fast, and gone with the process."""

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> MemoryStore:
        return MemoryStore(layout, capacity)
