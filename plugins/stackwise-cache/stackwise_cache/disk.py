"""Boundaries on disk, in checksummed safetensors shards."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash
from attrs import define, evolve
from torch import Tensor

from stackwise_cache.options import DiskOptions
from stackwise_cache.shard import DamagedShard, Shard, as_bytes, write_shard
from stackwise_core.files import sync
from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Key,
    Layout,
    MissingEntries,
)


@define(eq=False)
class Place:
    """Where an entry is: in a shard, or still waiting to be written, in the store's own buffer."""

    shard: Shard | None
    index: int


class DiskStore(ActivationStore):
    """A directory of shards. An entry waits in memory until its shard is full or ``flush`` is called.

    A shard is written whole, so a kill loses at most the one that was being filled. A file that isn't a whole shard of
    this layout is deleted and counted as damaged when the store is opened; an entry whose checksum is wrong is
    forgotten and counted when it is read.
    """

    def __init__(self, directory: Path, layout: Layout, capacity: int | None, shard_entries: int) -> None:
        self._directory, self._layout, self._capacity = directory, layout, capacity
        # A shard is evicted whole: with at least four of them, most of a full store stays.
        most = shard_entries if capacity is None else capacity // (4 * layout.bytes_per_entry)
        self._shard_entries = max(1, min(shard_entries, most))
        self._places: dict[Key, Place] = {}
        self._shards: OrderedDict[Path, Shard] = OrderedDict()  # the least recently used first
        self._waiting: list[Key] = []
        self._buffer: Tensor | None = None
        self._stats = CacheStats()
        self._find_shards()

    def _find_shards(self) -> None:
        if not self._directory.is_dir():
            return
        for beside in self._directory.glob(".*.tmp"):
            if not _being_written(beside):
                beside.unlink(missing_ok=True)
        found = [entry for entry in os.scandir(self._directory) if entry.name.endswith(".safetensors")]
        for entry in sorted(found, key=_modified):
            path = Path(entry.path)
            try:
                self._enter(Shard(path, self._layout))
            except DamagedShard:
                self._stats.damaged += 1
                path.unlink(missing_ok=True)
            except (FileNotFoundError, IsADirectoryError):
                continue  # another store has evicted it since; or it is nothing of ours
        self._evict(keep=None)

    def _enter(self, shard: Shard) -> None:
        self._shards[shard.path] = shard
        for index, key in enumerate(shard.keys):
            self._places[key] = Place(shard, index)

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        for key, entry in zip(keys, entries.detach().cpu(), strict=True):
            if key in self._places:
                self._stats.duplicates += 1
                continue
            if self._buffer is None:
                self._buffer = torch.empty((self._shard_entries, *self._layout.shape), dtype=self._layout.torch_dtype)
            self._buffer[len(self._waiting)] = entry
            self._places[key] = Place(None, len(self._waiting))
            self._waiting.append(key)
            self._stats.writes += 1
            if len(self._waiting) == self._shard_entries:
                self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        assert self._buffer is not None
        if not self._directory.is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            sync(self._directory.parent)
        # Named by its keys: what another writer publishes under this name holds the same entries.
        path = self._directory / f"{xxhash.xxh3_128_hexdigest(b''.join(self._waiting))}.safetensors"
        if path in self._shards:  # the same entries again, after damage
            self._forget(self._shards[path])
        write_shard(path, self._waiting, self._buffer[: len(self._waiting)])
        self._waiting = []
        self._enter(Shard(path, self._layout))
        self._evict(keep=path)

    def _evict(self, keep: Path | None) -> None:
        while self._capacity is not None and self._bytes() > self._capacity:
            path, shard = next(iter(self._shards.items()))
            if path == keep:
                return
            self._forget(shard)
            self._stats.evicted += len(shard.keys)

    def _forget(self, shard: Shard) -> None:
        for key in shard.keys:
            place = self._places.get(key)
            if place is not None and place.shard is shard:
                del self._places[key]
        del self._shards[shard.path]
        shard.path.unlink(missing_ok=True)

    def _bytes(self) -> int:
        return sum(shard.bytes for shard in self._shards.values())

    def get(self, keys: Sequence[Key]) -> Tensor:
        entries = torch.empty((len(keys), *self._layout.shape), dtype=self._layout.torch_dtype)
        rows = as_bytes(entries)
        missing = []
        for row, key in enumerate(keys):
            place = self._places.get(key)
            if place is None:
                missing.append(key)
            elif place.shard is None:
                assert self._buffer is not None
                entries[row] = self._buffer[place.index]
            elif place.shard.read(place.index, rows[row]):
                self._shards.move_to_end(place.shard.path)
            else:
                self._stats.damaged += 1
                del self._places[key]
                missing.append(key)
        if missing:
            raise MissingEntries(missing)
        self._stats.reads += len(keys)
        return entries

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        places = [self._places.get(key) for key in keys]
        for place in places:
            if place is not None and place.shard is not None:
                self._shards.move_to_end(place.shard.path)
        return [place is not None for place in places]

    def prefetch(self, keys: Sequence[Key]) -> None:
        for key in keys:
            place = self._places.get(key)
            if place is not None and place.shard is not None:
                place.shard.will_read(place.index)

    def drop(self) -> None:
        for shard in list(self._shards.values()):
            self._forget(shard)
        self._places.clear()
        self._waiting, self._buffer = [], None
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def close(self) -> None:
        self.flush()
        self._shards.clear()
        self._places.clear()

    def stats(self) -> CacheStats:
        return evolve(self._stats, entries=len(self._places), bytes=self._bytes())


def _modified(entry: os.DirEntry[str]) -> int:
    """When a shard was written; 0 where another store has deleted it since it was listed."""
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _being_written(beside: Path) -> bool:
    """Whether ``.NAME.PID.tmp`` belongs to another process that still runs."""
    pid = beside.name.split(".")[-2]
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class Disk(CacheBackend):
    """As large as the disk, and there again for the next process."""

    options: DiskOptions
    durable = True

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> DiskStore:
        return DiskStore(directory, layout, capacity, self.options.shard_entries)
