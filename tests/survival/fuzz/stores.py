"""Small stores of activations, to be damaged and used again."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.interfaces.cache_backend import ActivationStore, Layout, MissingEntries
from stackwise_core.testing.cache_backend import entries_of, keys_of
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb

SMALL = Layout(tokens=16, d_model=32, dtype="fp32")
STORED = range(12)


@cache
def stored(backend: str) -> bytes:
    """The one file of a store of some entries, from which one was deleted."""
    with tempfile.TemporaryDirectory() as folder:
        store = _store(backend, Path(folder) / "store")
        store.put(keys_of(*STORED, 50), entries_of(SMALL, *STORED, 50))
        store.flush()
        store.discard(keys_of(50))
        store.close()
        suffix = {"disk": "*.safetensors", "lmdb": "data.mdb"}[backend]
        (path,) = (Path(folder) / "store").glob(suffix)
        return path.read_bytes()


def _store(backend: str, directory: Path) -> ActivationStore:
    if backend == "disk":
        return Disk(DiskOptions(shard_entries=64)).open(directory, SMALL, None)
    return Lmdb(LmdbOptions(batch_entries=4)).open(directory, SMALL, None)


def use_store(backend: str, directory: Path) -> bool:
    """Check that each entry is right or missing, and that all can be put again; whether all were there."""
    store, found = _store(backend, directory), []
    assert len(list(store.keys())) == store.stats().entries
    for number in STORED:
        with suppress(MissingEntries):
            assert torch.equal(store.get(keys_of(number)), entries_of(SMALL, number)), f"a wrong entry {number}"
            found.append(number)
    store.put(keys_of(*STORED), entries_of(SMALL, *STORED))
    store.close()
    store = _store(backend, directory)
    assert torch.equal(store.get(keys_of(*STORED)), entries_of(SMALL, *STORED))
    store.close()
    return len(found) == len(STORED)
