"""Whether the packages are there that single keys need; those that plugins need are the registry's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from stackwise_core.config.model import Config


def missing_packages(config: Config) -> Iterator[tuple[str, str]]:
    """The keys that ask for a package that isn't installed, each with what to do about it."""
    if config.run.tensorboard and find_spec("tensorboard") is None:
        yield (
            "run.tensorboard",
            "needs the package tensorboard, which is not installed. "
            'Install it with: pip install "stackwise-core[tensorboard]"',
        )
