"""Keys of the configuration that choose an implementation of a hook, and the implementations that they chose."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import attrs
from attrs import frozen

from stackwise_core.config.model import Choice, Config
from stackwise_core.words import dotted

RACK_HOOKS = ("precision", "adapter")
"""Hooks whose implementations a rack needs that isn't trained any more."""

PLACED_HOOKS = ("corpus",)
"""Hooks whose options have paths that a run's configuration names as seen from its directory."""


@frozen
class HookField:
    """A key of the TOML that chooses an implementation, or a table of such keys."""

    path: tuple[str, ...]
    hook: str
    keys: type | None
    """Type of the keys of a table of choices, such as ``precision.stacks``: int for whole numbers, str for names."""


def hook_fields(table: type = Config, path: tuple[str, ...] = ()) -> Iterator[HookField]:
    """Yield every key that chooses, in the order of the model; none of tables of any name, such as ``data.sources``."""
    for attribute in attrs.fields(table):
        here = (*path, attribute.name)
        if hook := attribute.metadata.get("hook"):
            yield HookField(here, hook, key_type(attribute))
        elif attribute.type is not None and attrs.has(attribute.type):
            yield from hook_fields(attribute.type, here)


def key_type(attribute: "attrs.Attribute[Any]") -> type | None:
    """Return int or str where a field that chooses is a table of choices by whole number or by name; else None."""
    return get_args(attribute.type)[0] if get_origin(attribute.type) is dict else None


def tables_of(attribute: "attrs.Attribute[Any]") -> type | None:
    """Return the class of the tables that a field has by any name, as ``data.sources``; None: it has none."""
    arguments = get_args(attribute.type)
    is_table = get_origin(attribute.type) is dict and attrs.has(arguments[1]) and not attribute.metadata.get("hook")
    return arguments[1] if is_table else None


def choices(table: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Choice]]:
    """Yield key path, hook and choice for each choice that a configuration, or a table of it, makes."""
    for attribute in attrs.fields(type(table)):
        here, value = (*path, attribute.name), getattr(table, attribute.name)
        if hook := attribute.metadata.get("hook"):
            if key_type(attribute):
                yield from (((*here, str(each)), hook, value[each]) for each in sorted(value))
            elif value is not None:
                yield here, hook, value
        elif tables_of(attribute):
            for name in value:
                yield from choices(value[name], (*here, name))
        elif attrs.has(type(value)):
            yield from choices(value, here)


def chosen(config: Config) -> Iterator[tuple[str, str, Choice]]:
    """Yield dotted key, hook and choice for each choice that is made: ``("precision.stacks.3", "precision", ...)``."""
    for path, hook, choice in choices(config):
        yield dotted(path), hook, choice


def lengthen(data: dict[str, Any], table: type = Config) -> None:
    """Write each text alone out, in place.

    ``trunk = "nf4"`` is short for ``trunk = { use = "nf4" }``, and ``corpus = "books"`` for
    ``corpus = { use = "files", path = "books" }``.
    """
    for attribute in attrs.fields(table):
        value = data.get(attribute.name)
        if attribute.metadata.get("hook"):
            holder = value if key_type(attribute) else data
            if isinstance(holder, dict):
                for key in list(holder) if key_type(attribute) else [attribute.name]:
                    if isinstance(text := holder.get(key), str):
                        use, option = attribute.metadata["alone"] or (text, None)
                        holder[key] = {"use": use, option: text} if option else {"use": use}
        elif isinstance(value, dict) and (kind := tables_of(attribute)):
            for each in value.values():
                if isinstance(each, dict):
                    lengthen(each, kind)
        elif isinstance(value, dict) and attribute.type is not None and attrs.has(attribute.type):
            lengthen(value, attribute.type)
