"""Boundaries on disk, in checksummed safetensors shards."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import xxhash
from attrs import evolve
from torch import Tensor

from stackwise_cache.open_files import OpenFiles
from stackwise_cache.options import DiskOptions
from stackwise_cache.rows import as_bytes, rows_of
from stackwise_cache.shard import DamagedShard, Shard
from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Key,
    Layout,
    MissingEntries,
)
from stackwise_core.system.files import NO_ROOM, is_abandoned, sync

SHIFT = 32
"""A place is ``shard number << SHIFT | index``: one int an entry, and in the order of the files."""

WAITING = 0
"""The number that no shard has: the entry is in the buffer, yet to be written."""

LAST = (1 << SHIFT) - 1
"""The largest index."""


class DiskStore(ActivationStore):
    """A directory of shards. An entry waits in memory until its shard is full or ``flush`` is called.

    A shard is written whole, so a kill loses at most the one that was being filled. A file that isn't a whole shard of
    this layout is deleted and counted as damaged when the store is opened; an entry whose checksum is wrong is
    forgotten and counted when it is read. A shard is evicted whole, and deleted when none of its entries is left.
    """

    def __init__(self, directory: Path, layout: Layout, capacity: int | None, shard_entries: int) -> None:
        self._directory, self._layout, self._capacity = directory, layout, capacity
        self._shard_entries = layout.written_together(shard_entries)
        if capacity is not None:
            # With at least four shards, most of a full store stays when one of them goes.
            self._shard_entries = max(1, min(self._shard_entries, capacity // (4 * layout.bytes_per_entry)))
        self._places: dict[Key, int] = {}
        self._shards: OrderedDict[int, Shard] = OrderedDict()  # by number, the least recently used first
        self._numbered = WAITING
        self._shard_bytes = 0
        self._waiting: list[Key] = []
        self._buffer: np.ndarray | None = None
        self._stats = CacheStats()
        self._files = OpenFiles()
        self._find_shards()

    def _find_shards(self) -> None:
        try:
            found = list(os.scandir(self._directory))
        except FileNotFoundError:
            return
        for entry in found:
            if is_abandoned(entry.name):
                Path(entry.path).unlink(missing_ok=True)
        for entry in sorted((each for each in found if each.name.endswith(".safetensors")), key=_modified):
            path = Path(entry.path)
            try:
                self._enter(Shard.open(path, self._layout))
            except DamagedShard:
                self._stats.damaged += 1
                path.unlink(missing_ok=True)
            except (FileNotFoundError, IsADirectoryError):
                continue  # another store has evicted it since; or it is nothing of ours
        self._keep_capacity()

    def _enter(self, shard: Shard) -> None:
        """Add a shard's entries to the index."""
        keys = shard.keys()
        self._release(self._places.keys() & keys)
        self._numbered += 1
        self._shards[self._numbered] = shard
        self._shard_bytes += shard.size
        first, others = self._numbered << SHIFT, len(self._places)
        self._places.update(zip(keys, range(first, first + shard.count), strict=True))
        shard.living = len(self._places) - others

    def _release(self, keys: Iterable[Key]) -> None:
        """Remove these entries from the index; a shard of which none is left is deleted."""
        for key in keys:
            number = self._places.pop(key, WAITING) >> SHIFT
            if number != WAITING:
                shard = self._shards[number]
                shard.living -= 1
                if shard.living == 0:
                    self._delete(number)

    def _delete(self, number: int) -> None:
        shard = self._shards.pop(number)
        self._shard_bytes -= shard.size
        self._files.close(shard.path)
        shard.path.unlink(missing_ok=True)

    def _forget(self, number: int) -> int:
        """Delete a shard with all of its entries that are found in it; how many these are."""
        shard = self._shards[number]
        count, first = shard.living, number << SHIFT
        self._release([key for index, key in enumerate(shard.keys()) if self._places.get(key) == first + index])
        return count

    def put(self, keys: Sequence[Key], entries: Tensor) -> None:
        for key, row in zip(keys, as_bytes(entries), strict=True):
            if key in self._places:
                self._stats.duplicates += 1
                continue
            self._flush_if_full()  # still so where the last try has raised
            if self._buffer is None:
                self._buffer = np.empty((self._shard_entries, self._layout.bytes_per_entry), np.uint8)
            self._buffer[len(self._waiting)] = row
            self._places[key] = len(self._waiting)
            self._waiting.append(key)
            self._stats.writes += 1
            self._keep_capacity()
            self._flush_if_full()

    def _flush_if_full(self) -> None:
        if len(self._waiting) == self._shard_entries:
            self._write_waiting()

    def flush(self) -> None:
        self._write_waiting()
        self._buffer = None
        self._files.close_all()

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                shard = self._write()
            except FileNotFoundError:
                continue  # somebody has deleted the directory meanwhile; it is made again
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                if self._shards:
                    self._evict_shard()
                else:
                    self._evict_waiting(len(self._waiting))
            else:
                self._enter(shard)
                self._waiting = []
                self._keep_capacity()

    def _write(self) -> Shard:
        assert self._buffer is not None
        if not self._directory.is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            sync(self._directory.parent)
        # Named by its keys: what another writer publishes under this name holds the same entries.
        path = self._directory / f"{xxhash.xxh3_128_hexdigest(b''.join(self._waiting))}.safetensors"
        return Shard.write(path, self._waiting, self._buffer[: len(self._waiting)], self._layout)

    def _keep_capacity(self) -> None:
        if self._capacity is not None:
            self.shrink(self._capacity)

    def shrink(self, most: int) -> None:
        while self._shards and self._bytes() > most:
            self._evict_shard()
        over = self._bytes() - most
        if over > 0:
            self._evict_waiting(-(-over // self._layout.bytes_per_entry))

    def _evict_shard(self) -> None:
        self._stats.evicted += self._forget(next(iter(self._shards)))

    def _evict_waiting(self, count: int) -> None:
        """Evict the oldest of the entries that aren't written yet."""
        oldest = self._waiting[:count]
        self._stats.evicted += len(oldest)
        self.discard(oldest)

    def discard(self, keys: Iterable[Key]) -> None:
        self._release(keys)
        kept = [index for index, key in enumerate(self._waiting) if key in self._places]
        if len(kept) < len(self._waiting):
            assert self._buffer is not None
            # Interrupted in between, nothing waits, rather than a key over another's row.
            waiting, self._waiting = self._waiting, []
            self._buffer[: len(kept)] = self._buffer[kept]
            waiting = [waiting[index] for index in kept]
            self._places.update(zip(waiting, range(len(kept)), strict=True))
            self._waiting = waiting

    def _bytes(self) -> int:
        return self._shard_bytes + len(self._waiting) * self._layout.bytes_per_entry

    def get(self, keys: Sequence[Key]) -> Tensor:
        entries = torch.empty((len(keys), *self._layout.shape), dtype=self._layout.torch_dtype)
        self.read_into(keys, entries)
        return entries

    def read_into(self, keys: Sequence[Key], entries: Tensor) -> None:
        rows = rows_of(entries)
        if rows is None:
            super().read_into(keys, entries)
            return
        missing = [key for key, row in zip(keys, rows, strict=True) if not self._read(key, row)]
        if missing:
            raise MissingEntries(missing)
        self._stats.reads += len(keys)

    def _read(self, key: Key, into: np.ndarray) -> bool:
        """Read an entry's bytes; whether it is there and is what was written."""
        place = self._places.get(key)
        if place is None:
            return False
        number, index = place >> SHIFT, place & LAST
        if number == WAITING:
            assert self._buffer is not None
            into[:] = self._buffer[index]
            return True
        shard = self._shards[number]
        self._shards.move_to_end(number)
        try:
            descriptor = self._files.descriptor(shard.path)
        except FileNotFoundError:  # another store has evicted it
            self._forget(number)
            return False
        if shard.read(index, descriptor, into.data):
            return True
        self._stats.damaged += 1
        self._release([key])
        return False

    def contains(self, keys: Sequence[Key]) -> list[bool]:
        self._files.close_deleted()  # once a window, while each read would take a tenth longer for it
        places = [self._places.get(key) for key in keys]
        for number in {place >> SHIFT for place in places if place is not None}:
            if number != WAITING:
                self._shards.move_to_end(number)
        return [place is not None for place in places]

    def keys(self) -> Iterator[Key]:
        return iter(list(self._places))

    def prefetch(self, keys: Sequence[Key]) -> None:
        for place in map(self._places.get, keys):
            if place is not None and place >> SHIFT != WAITING:
                shard = self._shards[place >> SHIFT]
                with suppress(FileNotFoundError):
                    shard.will_read(place & LAST, self._files.descriptor(shard.path))

    def drop(self) -> None:
        for number in list(self._shards):
            self._delete(number)
        self._places.clear()
        self._waiting, self._buffer = [], None
        with suppress(OSError):  # not there, or with things in it that aren't ours
            self._directory.rmdir()

    def close(self) -> None:
        self.flush()
        self._shards.clear()
        self._places.clear()

    def stats(self) -> CacheStats:
        return evolve(self._stats, entries=len(self._places), bytes=self._bytes())


def _modified(entry: os.DirEntry[str]) -> int:
    """Return when a shard was written; 0 where another store has deleted it since it was listed."""
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Disk(CacheBackend):
    """Backend on disk. Its entries survive the process."""

    options: DiskOptions
    durable = True

    def buffer_bytes(self, layout: Layout) -> int:
        return layout.written_together(self.options.shard_entries) * layout.bytes_per_entry

    def open(self, directory: Path, layout: Layout, capacity: int | None) -> DiskStore:
        return DiskStore(directory, layout, capacity, self.options.shard_entries)
