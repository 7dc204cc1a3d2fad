"""Fixtures for tests of one store, for a conftest.py to import beside a fixture ``backend`` of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, Layout


@pytest.fixture
def layout() -> Layout:
    """Return the layout of activations [16, 32] in fp32."""
    return Layout(tokens=16, d_model=32, dtype="fp32")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the directory of the store; nothing is there yet."""
    return tmp_path / "namespace"


@pytest.fixture
def open_store(backend: CacheBackend, directory: Path, layout: Layout) -> Callable[..., ActivationStore]:
    """Open the store of the test's directory."""

    def open_store(layout: Layout = layout, capacity: int | None = None) -> ActivationStore:
        return backend.open(directory, layout, capacity)

    return open_store
