"""A small store in an environment."""

import pytest

from stackwise_core.testing.store_fixtures import directory, layout, open_store
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb

__all__ = ["directory", "layout", "open_store"]


@pytest.fixture
def backend():
    """With transactions of four entries."""
    return Lmdb(LmdbOptions(batch_entries=4))
