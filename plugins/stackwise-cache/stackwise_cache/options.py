"""Options of the two backends."""

from attrs import frozen

from stackwise_core.interfaces.cache_backend import CacheOptions
from stackwise_core.options import at_least, option


@frozen
class MemoryOptions(CacheOptions):
    """Options of the memory backend: those of every backend."""


@frozen
class DiskOptions(CacheOptions):
    shard_entries: int = option(
        256, "Activations a shard file; fewer if they take more than 64 MiB.", check=at_least(1)
    )
