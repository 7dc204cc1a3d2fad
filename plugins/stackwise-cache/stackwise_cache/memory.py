"""Boundaries in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
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


class MemoryStore(ActivationStore):
    """A dict from keys to entries, the least recently used first."""

    def __init__(self, layout: Layout, capacity: int | None) -> None:
        self._layout, self._capacity = layout, capacity
        self._entries: OrderedDict[Key, Tensor] = OrderedDict()
        self._stats = CacheStats()

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        for key, entry in zip(keys, entries.detach().cpu(), strict=True):
            if key in self._entries:
                self._stats.duplicates += 1
                continue
            self._entries[key] = entry.clone()  # a view would keep the whole batch alive
            self._stats.writes += 1
            self._evict()

    def _evict(self) -> None:
        while self._capacity is not None and len(self._entries) * self._layout.bytes_per_entry > self._capacity:
            self._entries.popitem(last=False)
            self._stats.evicted += 1

    def get(self, keys: Sequence[Key]) -> Tensor:
        missing = [key for key in keys if key not in self._entries]
        if missing:
            raise MissingEntries(missing)
        self.contains(keys)
        self._stats.reads += len(keys)
        entries = torch.empty((len(keys), *self._layout.shape), dtype=self._layout.torch_dtype)
        for row, key in enumerate(keys):
            entries[row] = self._entries[key]
        return entries

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        found = [key in self._entries for key in keys]
        for key, there in zip(keys, found, strict=True):
            if there:
                self._entries.move_to_end(key)
        return found

    def flush(self) -> None:
        """Keep everything where it is: nothing here outlives the process."""

    def drop(self) -> None:
        self._entries.clear()

    def stats(self) -> CacheStats:
        entries = len(self._entries)
        return evolve(self._stats, entries=entries, bytes=entries * self._layout.bytes_per_entry)


class Memory(CacheBackend):
    """Fast, and gone with the process."""

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> MemoryStore:
        return MemoryStore(layout, capacity)
