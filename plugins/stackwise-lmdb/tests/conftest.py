"""A small store in an environment."""

import pytest

from stackwise_core.interfaces.cache_backend import Layout
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb


@pytest.fixture
def layout():
    return Layout(tokens=16, d_model=32, dtype="fp32")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "namespace"


@pytest.fixture
def open_store(directory, layout):
    """Open the store of the test's directory, with transactions of four entries."""

    def open_store(layout=layout, capacity=None):
        return Lmdb(LmdbOptions(batch_entries=4)).open(directory, layout, capacity)

    return open_store
