"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def cache_backend() -> list[Implementation]:
    return [
        Implementation(
            "lmdb",
            "Boundaries in an LMDB environment on disk",
            "stackwise_lmdb.store:Lmdb",
            "stackwise_lmdb.options:LmdbOptions",
            packages=("lmdb",),
        ),
    ]
