"""Relative paths in the configuration, which are taken from the folder of the layer that sets them."""

import glob
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from stackwise_core.config.layers import KeyPath, Layer, Merged, RunLayer
from stackwise_core.config.model import Choice, Config

T = TypeVar("T", bound=attrs.AttrsInstance)
Change = Callable[[KeyPath, str], str]
"""Function that returns a path in place of another, given its key."""


def absolute(value: str, folder: Path) -> str:
    """Return a path in full; ``~`` is the home directory."""
    return str(folder.absolute() / os.path.expanduser(value))


def with_absolute_paths(config: Config, merged: Merged) -> Config:
    """Return a copy with all explicitly set paths made absolute. Defaults are kept."""

    def found(path: KeyPath, value: str) -> str:
        layer = merged.origins.get(path)
        return value if layer is None else _found(layer, value)

    return with_paths(config, found)


def with_paths_relative_to(config: Config, folder: Path) -> Config:
    """Return a copy for a run's directory: texts and the rack it starts from are named as seen from there.

    Paths that share only the root with the folder stay absolute. So do plugin files, of which a run's configuration
    loads none by a relative path, and paths among the options of plugins.
    """

    def seen_from(path: KeyPath, value: str) -> str:
        return _seen_from(folder, value) if path[0] in ("data", "rack") else value

    return with_paths(config, seen_from)


def with_paths(instance: T, change: Change, path: KeyPath = ()) -> T:
    """Return a copy of a table with each of its paths changed, those in plugins' options too."""
    changes: dict[str, Any] = {}
    for attribute in attrs.fields(type(instance)):
        here = (*path, attribute.name)
        value, names = getattr(instance, attribute.name), attribute.metadata.get("path")
        if isinstance(value, Choice):
            changes[attribute.alias] = _choice(value, change, here)
        elif attribute.metadata.get("hook") and isinstance(value, dict):
            changes[attribute.alias] = {
                number: _choice(choice, change, (*here, str(number))) for number, choice in value.items()
            }
        elif isinstance(value, dict) and any(attrs.has(type(table)) for table in value.values()):
            changes[attribute.alias] = {name: with_paths(table, change, (*here, name)) for name, table in value.items()}
        elif attrs.has(type(value)):
            changes[attribute.alias] = with_paths(value, change, here)
        elif names is not None and value is not None:
            changes[attribute.alias] = _each(value, names, partial(change, here))
    with attrs.validators.disabled():
        return cast(T, attrs.evolve(cast(Any, instance), **changes))


def with_absolute_options(choice: Choice, folder: Path) -> Choice:
    """Return a choice whose paths are absolute."""
    return _choice(choice, lambda key, value: absolute(value, folder), ())


def is_there(value: str) -> bool:
    """Return whether a path exists.

    A data set's path may name a split (``PATH#SPLIT``); of a glob, the beginning without a wildcard is looked for.
    """
    path = Path(value if os.path.lexists(value) else value.partition("#")[0])
    while glob.has_magic(str(path)):
        path = path.parent
    return os.path.lexists(path)


def _choice(choice: Choice, change: Change, path: KeyPath) -> Choice:
    if isinstance(choice.options, dict):  # as in the file: its plugin wasn't asked for
        return choice
    # Its options stand beside its `use`, in the same table.
    return attrs.evolve(choice, options=with_paths(choice.options, change, path))


def _each(value: Any, names: tuple[str, ...], change: Callable[[str], str]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_each(part, names, change) for part in value)
    if value in names:
        return value
    return type(value)(change(str(value)))


def _found(layer: Layer, value: str) -> str:
    """Return the path that a path in a layer leads to."""
    if not isinstance(layer, RunLayer) or os.path.isabs(value):
        return absolute(value, layer.folder)
    here = os.path.normpath(os.path.join(os.path.realpath(layer.folder), value))
    if is_there(here) or layer.written_in is None:
        return here
    there = os.path.normpath(os.path.join(layer.written_in, value))
    return there if is_there(there) else here


def _seen_from(folder: Path, value: str) -> str:
    # With links resolved, since ".." leads out of what a link leads to.
    here = os.path.realpath(folder)
    there = os.path.join(os.path.realpath(os.path.dirname(value)), os.path.basename(value))
    if not os.path.isabs(value) or os.path.commonpath([here, there]) == os.path.sep:
        return value
    relative = os.path.relpath(there, here)
    return relative if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)
