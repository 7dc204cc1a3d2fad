"""Keys of the configuration that choose an implementation of a hook, and the implementations that they chose."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import attrs
from attrs import frozen

from stackwise_core.config.model import Choice, Config

RACK_HOOKS = ("precision", "adapter")
"""Hooks whose implementations a rack needs that isn't trained any more."""


@frozen
class HookField:
    """A key whose ``use`` chooses, or a table of such keys."""

    path: tuple[str, ...]
    hook: str
    keys: type | None
    """Type of the keys of a table of choices, such as ``precision.stacks``: int for whole numbers, str for names."""


def hook_fields(table: type = Config, path: tuple[str, ...] = ()) -> Iterator[HookField]:
    """Yield every key that chooses, in the order of the model."""
    for attribute in attrs.fields(table):
        here = (*path, attribute.name)
        if hook := attribute.metadata.get("hook"):
            yield HookField(here, hook, key_type(attribute))
        elif attribute.type is not None and attrs.has(attribute.type):
            yield from hook_fields(attribute.type, here)


def key_type(attribute: "attrs.Attribute[Any]") -> type | None:
    """Return int or str where a field that chooses is a table of choices by whole number or by name; else None."""
    return get_args(attribute.type)[0] if get_origin(attribute.type) is dict else None


def chosen(config: Config) -> Iterator[tuple[str, str, Choice]]:
    """Yield dotted key, hook and choice for each choice that is made: ``("precision.stacks.3", "precision", ...)``."""
    for field in hook_fields():
        value: Any = config
        for key in field.path:
            value = getattr(value, key)
        key = ".".join(field.path)
        if field.keys:
            yield from ((f"{key}.{each}", field.hook, value[each]) for each in sorted(value))
        elif value is not None:
            yield key, field.hook, value


def lengthen(data: dict[str, Any]) -> None:
    """Write each name alone out, in place: ``trunk = "nf4"`` is short for ``trunk = { use = "nf4" }``."""
    for field in hook_fields():
        table: Any = data
        for key in field.path if field.keys else field.path[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            for key in list(table) if field.keys else field.path[-1:]:
                if isinstance(table.get(key), str):
                    table[key] = {"use": table[key]}
