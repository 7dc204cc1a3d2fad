"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def cache_backend() -> list[Implementation]:
    return [
        Implementation(
            "memory",
            "Boundaries in memory",
            "stackwise_cache.memory:Memory",
            "stackwise_cache.options:MemoryOptions",
        ),
        Implementation(
            "disk",
            "Boundaries in checksummed safetensors shards on disk",
            "stackwise_cache.disk:Disk",
            "stackwise_cache.options:DiskOptions",
        ),
    ]
