"""Stackwise: train transformers stack by stack with a masked-diffusion objective.

import stackwise_core as sw

configuration = sw.load_config("stackwise.toml")
result = sw.run(configuration)
rack = sw.load_rack(result.directory)
"""

from typing import TYPE_CHECKING, Any

from stackwise_core.system.openmp import wait_passively

if TYPE_CHECKING:
    from stackwise_core.api import (
        ConfigError,
        Configuration,
        Finished,
        StackwiseError,
        UnavailableError,
        UsageError,
        load_config,
        load_rack,
        plan,
        run,
    )

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "Configuration",
    "Finished",
    "StackwiseError",
    "UnavailableError",
    "UsageError",
    "load_config",
    "load_rack",
    "plan",
    "run",
]

wait_passively()  # before anything here loads torch


def __getattr__(name: str) -> Any:
    """Import what ``__all__`` names when it is asked for: who wants one module doesn't wait for the others."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    from stackwise_core import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
