"""A small store on disk."""

import pytest

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.interfaces.cache_backend import Layout


@pytest.fixture
def layout():
    return Layout(tokens=16, d_model=32, dtype="fp32")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "namespace"


@pytest.fixture
def open_store(directory, layout):
    """Open the store of the test's directory, with shards of four."""

    def open_store(layout=layout, capacity=None):
        return Disk(DiskOptions(shard_entries=4)).open(directory, layout, capacity)

    return open_store
