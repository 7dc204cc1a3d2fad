"""The backends against the conformance kit."""

import pytest

from stackwise_cache.disk import Disk
from stackwise_cache.memory import Memory
from stackwise_cache.options import DiskOptions, MemoryOptions
from stackwise_core.testing.cache_backend import CacheBackendContract
from stackwise_core.testing.plugin import PluginContract


class TestPlugin(PluginContract):
    hooks = "stackwise_cache.hooks"


class TestMemory(CacheBackendContract):
    @pytest.fixture
    def backend(self):
        return Memory(MemoryOptions())


@pytest.mark.slow
class TestDisk(CacheBackendContract):
    @pytest.fixture(params=[1, 4, 256])
    def backend(self, request):
        return Disk(DiskOptions(shard_entries=request.param))
