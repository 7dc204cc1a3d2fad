"""The backend against the conformance kit."""

import pytest

from stackwise_core.testing.cache_backend import CacheBackendContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb


class TestPlugin(PluginContract):
    hooks = "stackwise_lmdb.hooks"


@pytest.mark.slow
class TestLmdb(CacheBackendContract):
    @pytest.fixture(params=[1, 4, 256])
    def backend(self, request):
        return Lmdb(LmdbOptions(batch_entries=request.param))
