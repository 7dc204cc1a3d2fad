"""The stores of a run's boundaries: one directory, one capacity, and a record of what each of them holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackwise_core.files import NO_ROOM
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, Layout
from stackwise_core.interfaces.component import ContractError
from stackwise_core.runs.stored_boundaries import StoredBoundary, drop_record, is_namespace, owner, write_record
from stackwise_core.training.namespace import namespace


class Stores:
    """Opens stores, and keeps those that are open within the backend's capacity.

    Args:
        directory: of the stores and their records.
        run: the directory of the run whose they are.
    """

    def __init__(self, backend: CacheBackend, directory: Path, run: Path) -> None:
        self.backend, self._directory, self._run = backend, directory, str(run.absolute())
        self._within_run = Path(self._run) in directory.absolute().parents
        self._open: dict[str, ActivationStore] = {}  # by name, the oldest time step's first

    def open(self, phase: str, trunk: Sequence[int], layout: Layout, made_of: Mapping[str, object]) -> ActivationStore:
        """The store of what a boundary is made of, with whatever is left there."""
        name = namespace(made_of)
        if self.backend.durable:
            self._write_record(StoredBoundary(name, self._run, phase, tuple(trunk), layout, dict(made_of)))
        store = self.backend.open(self._directory / name, layout, self.backend.options.capacity)
        if not isinstance(store, ActivationStore):
            raise ContractError(self.backend, f"open() gave {type(store).__name__}, expected an ActivationStore")
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
            # Nothing depends on it: it is there to be looked at.

    def _is_ours(self, name: str) -> bool:
        """Whether this run may delete a store: whoever wrote its record may."""
        return self._within_run or owner(self._directory, name) in (self._run, None)

    def is_ours(self, store: ActivationStore) -> bool:
        """Whether this run may delete an open store, or some of it."""
        return all(self._is_ours(name) for name, each in self._open.items() if each is store)

    def make_room(self) -> None:
        """Evict what exceeds the capacity: the oldest time step's first, and of that the least recently used."""
        capacity = self.backend.options.capacity
        if capacity is None:
            return
        for store in filter(self.is_ours, self._open.values()):
            excess = sum(each.stats().bytes for each in self._open.values()) - capacity
            if excess <= 0:
                return
            store.shrink(max(0, store.stats().bytes - excess))

    def forget(self, store: ActivationStore, *, delete: bool) -> None:
        """A store isn't used any more; nothing is to be left of one that was dropped."""
        for name in [name for name, each in self._open.items() if each is store]:
            del self._open[name]
            if delete:
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
