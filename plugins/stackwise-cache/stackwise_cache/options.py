"""Options of the two backends."""

from attrs import frozen

from stackwise_core.interfaces.cache_backend import CacheOptions
from stackwise_core.options import ByteSize, at_least, option


@frozen
class MemoryOptions(CacheOptions):
    device_memory: ByteSize | None = option(
        None,
        "Most bytes of boundaries in a GPU's own memory; the others are in page-locked host memory. 0: none. Left out: "
        "what the plan leaves of the GPU's memory. On a CPU all are in its memory.",
    )


@frozen
class DiskOptions(CacheOptions):
    shard_entries: int = option(
        256, "Activations a shard file; fewer if they take more than 64 MiB.", check=at_least(1)
    )
