"""Reference of the configuration: an options class as rows of key, type, default and help."""

from collections.abc import Mapping
from typing import Any, get_args, get_origin

import attrs
from attrs import frozen

from stackwise_core.config.choices import key_type
from stackwise_core.config.defaults import default_of
from stackwise_core.words import noun, shown, with_article


@frozen
class OptionRow:
    """One key of a table, in words."""

    key: str
    type: str
    """Type as people write it: ``"integer"``, ``"array of strings"``, ``'"auto", "cpu" or "cuda"'``."""
    default: str
    """Default as the TOML would say it; ``"left out"`` for None; empty where the key is required."""
    help: str


def describe(options_class: type) -> list[OptionRow]:
    """List the keys of an attrs class in their order; those of a table within it as ``table.key``."""
    attrs.resolve_types(options_class)
    return [row for attribute in attrs.fields(options_class) if attribute.init for row in _rows(attribute)]


def _rows(attribute: "attrs.Attribute[Any]") -> list[OptionRow]:
    default, help = default_of(attribute), attribute.metadata.get("help", "")
    if attribute.type is not None and attrs.has(attribute.type) and not attribute.metadata.get("hook"):
        return [attrs.evolve(row, key=f"{attribute.name}.{row.key}") for row in describe(attribute.type)]
    if hook := attribute.metadata.get("hook"):
        if keys := key_type(attribute):
            by = "whole number" if keys is int else "name"
            return [OptionRow(attribute.name, f"table of {hook}s by {by}", _written(default), help)]
        if attribute.metadata["alone"]:
            return [OptionRow(attribute.name, "string, or a table with use", _written(default), help)]
        use = default["use"] if isinstance(default, Mapping) else default
        return [OptionRow(attribute.name, f"name of {with_article(hook)}, or a table with use", _written(use), help)]
    row = OptionRow(attribute.name, noun(attribute.type), _written(default), help)
    return [row, *_rows_of_tables(attribute)]


def _rows_of_tables(attribute: "attrs.Attribute[Any]") -> list[OptionRow]:
    """List the keys of the tables within a table with free keys, as ``sources.NAME.corpus``."""
    of = get_args(attribute.type)
    if get_origin(attribute.type) is not dict or not attrs.has(of[1]):
        return []
    return [attrs.evolve(row, key=f"{attribute.name}.NAME.{row.key}") for row in describe(of[1])]


def _written(value: Any) -> str:
    if value is attrs.NOTHING:
        return ""
    return "left out" if value is None else shown(value, longest=None)
