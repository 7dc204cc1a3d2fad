"""Relative paths in the configuration, which are taken from the folder of the layer that sets them."""

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from stackwise_core.config.layers import KeyPath, Merged
from stackwise_core.config.model import Choice

T = TypeVar("T", bound=attrs.AttrsInstance)


def absolute(value: str, folder: Path) -> str:
    """A path in full; ``~`` is the home directory."""
    return str(folder.absolute() / os.path.expanduser(value))


def with_absolute_paths(instance: T, merged: Merged, path: KeyPath = ()) -> T:
    """A copy in which every path that some layer set is absolute; a default stays as it is."""
    changes: dict[str, Any] = {}
    for attribute in attrs.fields(type(instance)):
        here = (*path, attribute.name)
        value, names = getattr(instance, attribute.name), attribute.metadata.get("path")
        if isinstance(value, Choice):
            changes[attribute.alias] = _choice(value, merged, here)
        elif attribute.metadata.get("hook") and isinstance(value, dict):
            changes[attribute.alias] = {
                number: _choice(choice, merged, (*here, str(number))) for number, choice in value.items()
            }
        elif isinstance(value, dict) and any(attrs.has(type(table)) for table in value.values()):
            changes[attribute.alias] = {
                name: with_absolute_paths(table, merged, (*here, name)) for name, table in value.items()
            }
        elif attrs.has(type(value)):
            changes[attribute.alias] = with_absolute_paths(value, merged, here)
        elif names is not None and value is not None and (folder := _folder(merged, here)):
            changes[attribute.alias] = _each(value, names, folder)
    with attrs.validators.disabled():
        return cast(T, attrs.evolve(cast(Any, instance), **changes))


def _choice(choice: Choice, merged: Merged, path: KeyPath) -> Choice:
    # Its options stand beside its `use`, in the same table.
    return attrs.evolve(choice, options=with_absolute_paths(choice.options, merged, path))


def _folder(merged: Merged, path: KeyPath) -> Path | None:
    layer = merged.origins.get(path)
    return layer.folder if layer else None


def _each(value: Any, names: tuple[str, ...], folder: Path) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_each(part, names, folder) for part in value)
    if value in names:
        return value
    return type(value)(absolute(str(value), folder))
