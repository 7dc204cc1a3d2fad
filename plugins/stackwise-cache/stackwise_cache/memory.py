"""Boundaries in memory."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from stackwise_cache.options import MemoryOptions
from stackwise_cache.pool import Pool
from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Key,
    Layout,
    MissingEntries,
)


class MemoryStore(ActivationStore):
    """A dict from keys to rows of a pool, the least recently used first.

    Args:
        pool: of the backend. What one store gives up, another one of the same layout takes.
    """

    reads_to_device = True

    def __init__(self, layout: Layout, capacity: int | None, pool: Pool) -> None:
        self._layout, self._capacity, self._pool = layout, capacity, pool
        self._most = None if capacity is None else capacity // layout.bytes_per_entry + 1
        self._places: OrderedDict[Key, int] = OrderedDict()
        self._stats = CacheStats()

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        for key, entry in zip(keys, entries.detach(), strict=True):
            if key in self._places:
                self._stats.duplicates += 1
                continue
            place = self._pool.take(self._most)
            self._pool.write(place, entry)
            self._places[key] = place
            self._stats.writes += 1
            if self._capacity is not None:
                self.shrink(self._capacity)

    def shrink(self, most: int) -> None:
        while self._places and len(self._places) * self._layout.bytes_per_entry > most:
            self._pool.give_back(self._places.popitem(last=False)[1])
            self._stats.evicted += 1

    def get(self, keys: Sequence[Key]) -> Tensor:
        entries = torch.empty((len(keys), *self._layout.shape), dtype=self._layout.torch_dtype)
        self.read_into(keys, entries)
        return entries

    def read_into(self, keys: Sequence[Key], entries: Tensor) -> None:
        missing = [key for key in keys if key not in self._places]
        if missing:
            raise MissingEntries(missing)
        self.contains(keys)
        self._pool.read([self._places[key] for key in keys], entries)
        self._stats.reads += len(keys)

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        found = [key in self._places for key in keys]
        for key, there in zip(keys, found, strict=True):
            if there:
                self._places.move_to_end(key)
        return found

    def keys(self) -> Iterator[Key]:
        return iter(list(self._places))

    def discard(self, keys: Iterable[Key]) -> None:
        for key in keys:
            place = self._places.pop(key, None)
            if place is not None:
                self._pool.give_back(place)

    def flush(self) -> None:
        """Keep everything where it is: nothing here outlives the process."""

    def drop(self) -> None:
        self.discard(list(self._places))

    def close(self) -> None:
        self.drop()

    def stats(self) -> CacheStats:
        entries = len(self._places)
        return evolve(self._stats, entries=entries, bytes=entries * self._layout.bytes_per_entry)


class Memory(CacheBackend):
    """Backend in memory: fast, and gone with the process."""

    options: MemoryOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._pools: dict[Layout, Pool] = {}

    def bytes_on_device(self, size: int) -> int:
        if self.device is None or self.device.type == "cpu":
            return 0
        return min(size, self.device_room if self.options.device_memory is None else self.options.device_memory)

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> MemoryStore:
        pool, device_bytes = self._pools.get(layout), self.bytes_on_device(1 << 62)
        if pool is None:
            device = torch.device("cpu") if self.device is None else self.device
            pool = self._pools[layout] = Pool(layout, device, device_bytes)
        pool.resize(device_bytes)
        return MemoryStore(layout, capacity, pool)
