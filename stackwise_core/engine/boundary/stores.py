"""The stores of a run's boundaries: one directory, one capacity, and a record of what each of them holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackwise_core.engine.boundary.namespace import namespace
from stackwise_core.interfaces.cache_backend import (
    LARGEST_BUFFER,
    ActivationStore,
    CacheBackend,
    CacheStats,
    Layout,
)
from stackwise_core.interfaces.component import ContractError
from stackwise_core.run_files.stored_boundaries import (
    StoredBoundary,
    drop_record,
    is_namespace,
    owner,
    write_record,
)
from stackwise_core.system.files import NO_ROOM


class Stores:
    """The open stores of a run, kept within the backend's capacity.

    Args:
        directory: of the stores and their records.
        run: the directory of the run whose they are.
    """

    def __init__(self, backend: CacheBackend, directory: Path, run: Path) -> None:
        self.backend, self._directory, self._run = backend, directory, str(run.absolute())
        self._within_run = Path(self._run) in directory.absolute().parents
        self._open: dict[str, ActivationStore] = {}  # by name, the oldest time step's first
        self._gone: list[CacheStats] = []  # of those that aren't open any more
        self._settled = (0, 0)

    def open(
        self, phase: str, trunk: Sequence[int], layout: Layout, provenance: Mapping[str, object]
    ) -> ActivationStore:
        """Open the store for a boundary of this provenance, with whatever is left there."""
        name = namespace(provenance)
        if self.backend.durable:
            self._write_record(StoredBoundary(name, self._run, phase, tuple(trunk), layout, dict(provenance)))
        capacity = self.backend.options.capacity if self._is_ours(name) else None  # another run's has its own
        store = self.backend.open(self._directory / name, layout, capacity)
        if not isinstance(store, ActivationStore):
            raise ContractError(self.backend, f"open() gave {type(store).__name__}, expected an ActivationStore")
        if name in self._open:
            self._gone.append(self._open[name].stats())
        self._open[name] = store
        return store

    def _write_record(self, boundary: StoredBoundary) -> None:
        if not self._is_ours(boundary.namespace):
            return
        try:
            write_record(self._directory, boundary)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Without it the store is anybody's who has it, too: a run may delete it, and loses time by that.

    def _is_ours(self, name: str) -> bool:
        """Return whether this run may delete a store: whoever wrote its record may."""
        return self._within_run or owner(self._directory, name) in (self._run, None)

    def is_ours(self, store: ActivationStore) -> bool:
        """Return whether this run may delete an open store, or some of it."""
        return all(self._is_ours(name) for name, each in self._open.items() if each is store)

    def may_grow(self, store: ActivationStore, by: int) -> bool:
        """Return whether so many bytes may be put: into another run's store only where nothing has to go for them."""
        if self.is_ours(store):
            return True
        capacity = self.backend.options.capacity
        fits = capacity is None or self._bytes + by <= capacity
        return fits and shutil.disk_usage(self._directory).free > by + LARGEST_BUFFER

    @property
    def _bytes(self) -> int:
        return sum(store.stats().bytes for store in self._open.values())

    def make_room(self) -> None:
        """Evict what exceeds the capacity: the oldest time step's first, and of that the least recently used."""
        capacity = self.backend.options.capacity
        if capacity is None:
            return
        for store in filter(self.is_ours, self._open.values()):
            excess = self._bytes - capacity
            if excess <= 0:
                return
            store.shrink(max(0, store.stats().bytes - excess))

    @property
    def losses(self) -> CacheStats:
        """Counts ``evicted`` and ``damaged`` of all stores since ``settle``, with what one finds when it is opened."""
        evicted, damaged = self._lost
        return CacheStats(evicted=evicted - self._settled[0], damaged=damaged - self._settled[1])

    def settle(self) -> None:
        """Reset the counts: a phase was measured, and later losses belong to the next one."""
        self._settled = self._lost

    @property
    def _lost(self) -> tuple[int, int]:
        stats = [*self._gone, *(store.stats() for store in self._open.values())]
        return sum(each.evicted for each in stats), sum(each.damaged for each in stats)

    def release(self, store: ActivationStore) -> None:
        """Delete a store that is no longer used, with its record, unless it belongs to another run."""
        for name in [name for name, each in self._open.items() if each is store]:
            ours = self._is_ours(name)
            store.drop() if ours else store.flush()
            self._gone.append(store.stats())
            store.close()
            del self._open[name]
            if ours:
                self._delete(name)

    def drop_others(self) -> None:
        """Delete what this run has left of stores that it doesn't use any more, as when it was killed."""
        if not self._directory.is_dir():
            return
        # A run's `cache` may be a link to anything; what hasn't a store's name is nobody's store.
        there = {path.stem for path in self._directory.iterdir() if is_namespace(path.stem)}
        for name in there - set(self._open):
            if self._within_run or owner(self._directory, name) == self._run:
                self._delete(name)

    def _delete(self, name: str) -> None:
        shutil.rmtree(self._directory / name, ignore_errors=True)
        drop_record(self._directory, name)
