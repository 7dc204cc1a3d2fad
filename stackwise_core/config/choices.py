"""Which keys of the configuration choose an implementation of a hook, and what they chose."""

from collections.abc import Iterator
from typing import Any

import attrs

from stackwise_core.config.model import Choice, Config


def hook_fields(table: type = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Key path and hook of every table whose ``use`` chooses."""
    for attribute in attrs.fields(table):
        here = (*path, attribute.name)
        if hook := attribute.metadata.get("hook"):
            yield here, hook
        elif attribute.type is not None and attrs.has(attribute.type):
            yield from hook_fields(attribute.type, here)


def chosen(config: Config) -> Iterator[tuple[str, str, Choice]]:
    """Dotted key, hook and choice wherever a configuration chooses: ``("precision.active", "precision", ...)``."""
    for path, hook in hook_fields():
        value: Any = config
        for key in path:
            value = getattr(value, key)
        if value is not None:
            yield ".".join(path), hook, value
