"""A small store on disk."""

import pytest

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.testing.store_fixtures import directory, layout, open_store

__all__ = ["directory", "layout", "open_store"]


@pytest.fixture
def backend():
    """With shards of four."""
    return Disk(DiskOptions(shard_entries=4))
