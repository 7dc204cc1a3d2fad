"""Options of the backend."""

from attrs import frozen

from stackwise_core.interfaces.cache_backend import CacheOptions
from stackwise_core.options import at_least, option


@frozen
class LmdbOptions(CacheOptions):
    batch_entries: int = option(
        256,
        "Activations a transaction. They wait for it in memory, so there are fewer if they take more than 64 MiB.",
        check=at_least(1),
    )
