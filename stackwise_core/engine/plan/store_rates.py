"""Rates of a cache backend, from a short measurement with a store of the run's own layout."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from functools import cache as once
from pathlib import Path

import torch
from attrs import define, field, frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import CacheBackend, Layout

MEASURED_BYTES = 32 << 20
"""Bytes that are put at most; of larger entries, one is."""
LONG_ENOUGH = 0.2
"""Seconds of putting, after which the rest isn't put."""


@frozen
class StoreRates:
    """Bytes a second."""

    written: float
    """Bytes put a second, until they are durable."""
    read: float
    """Bytes read a second, from memory or from the disk's cache; a cold disk is slower."""


@define(frozen=True)
class _Subject:
    """A backend to be measured; two of equal options in one place are the same."""

    name: str
    layout: Layout
    place: Path
    backend: CacheBackend = field(eq=False)


def measure_store(backend: CacheBackend, layout: Layout, directory: Path) -> StoreRates | None:
    """Put entries into a store, make them durable and read them; once in a process for the same backend and place.

    Args:
        directory: beside which a temporary one has the store.

    Returns:
        None: a store can't be opened or written there.
    """
    place = directory.absolute()
    while not place.is_dir():
        place = place.parent
    described = json.dumps(backend.described, sort_keys=True, default=str)
    return _measured(_Subject(f"{described} on {backend.device}", layout, place, backend))


@once
def _measured(subject: _Subject) -> StoreRates | None:
    try:
        beside = Path(tempfile.mkdtemp(prefix=".stackwise-rates-", dir=subject.place))
    except OSError:
        return None
    try:
        return _rates(subject.backend, subject.layout, beside / ("0" * 32))
    except (OSError, StackwiseError):
        return None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _rates(backend: CacheBackend, layout: Layout, directory: Path) -> StoreRates:
    store = backend.open(directory, layout, None)
    size = layout.bytes_per_entry
    entry = torch.arange(size, dtype=torch.int64).to(torch.uint8).view(layout.torch_dtype).view(1, *layout.shape)
    keys: list[bytes] = []
    try:
        began = time.perf_counter()
        while not keys or (len(keys) * size < MEASURED_BYTES and time.perf_counter() - began < LONG_ENOUGH):
            keys.append(len(keys).to_bytes(16, "little"))
            store.put(keys[-1:], entry)
        store.flush()
        wrote = time.perf_counter()
        device = backend.device if backend.device is not None and store.reads_to_device else torch.device("cpu")
        into = torch.empty(entry.shape, dtype=entry.dtype, device=device)
        store.prefetch(keys)
        for key in reversed(keys):
            store.read_into([key], into)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        read = time.perf_counter()
    finally:
        store.drop()
        store.close()
    total = len(keys) * size
    return StoreRates(total / max(wrote - began, 1e-9), total / max(read - wrote, 1e-9))
