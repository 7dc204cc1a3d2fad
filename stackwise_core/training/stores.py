"""The stores of a run's boundaries: one directory, one capacity, and a record of what each of them holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackwise_core.files import NO_ROOM
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, Layout
from stackwise_core.runs.stored_boundaries import StoredBoundary, drop_record, read_records, write_record
from stackwise_core.training.namespace import namespace


class Stores:
    """Opens stores, and keeps those that are open within the backend's capacity.

    Args:
        directory: of the stores and their records.
        run: the directory of the run whose they are.
    """

    def __init__(self, backend: CacheBackend, directory: Path, run: Path) -> None:
        self._backend, self._directory, self._run = backend, directory, str(run.absolute())
        self._open: dict[str, ActivationStore] = {}  # by name, the oldest time step's first

    def open(self, phase: str, trunk: Sequence[int], layout: Layout, made_of: Mapping[str, object]) -> ActivationStore:
        """The store of what a boundary is made of, with whatever is left there."""
        name = namespace(made_of)
        if self._backend.durable:
            self._write_record(StoredBoundary(name, self._run, phase, tuple(trunk), layout, dict(made_of)))
        store = self._backend.open(self._directory / name, layout, self._backend.options.capacity)
        self._open[name] = store
        return store

    def _write_record(self, boundary: StoredBoundary) -> None:
        try:
            write_record(self._directory, boundary)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Nothing depends on it: it is there to be looked at.

    def make_room(self) -> None:
        """Evict what exceeds the capacity: the oldest time step's first, and of that the least recently used."""
        capacity = self._backend.options.capacity
        if capacity is None:
            return
        for store in self._open.values():
            excess = sum(each.stats().bytes for each in self._open.values()) - capacity
            if excess <= 0:
                return
            store.shrink(max(0, store.stats().bytes - excess))

    def forget(self, store: ActivationStore) -> None:
        """A store was dropped: nothing is to be left of it."""
        for name in [name for name, each in self._open.items() if each is store]:
            del self._open[name]
            self._delete(name)

    def drop_others(self) -> None:
        """Delete what this run has left of stores that it doesn't use any more, as when it was killed."""
        if not self._directory.is_dir():
            return
        owners = {record.namespace: record.run for record in read_records(self._directory)}
        within_run = Path(self._run) in self._directory.absolute().parents
        for name in {path.stem for path in self._directory.iterdir()} - set(self._open):
            if within_run or owners.get(name) == self._run:
                self._delete(name)

    def _delete(self, name: str) -> None:
        shutil.rmtree(self._directory / name, ignore_errors=True)
        drop_record(self._directory, name)
