"""A configuration as TOML text, from which ``load`` makes it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomlkit

from stackwise_core.config.model import Choice, Config
from stackwise_core.config.utf8_names import refuse_names_beyond_utf8
from stackwise_core.options import ByteSize


def dump(config: Config) -> str:
    """Return every table and key with its resolved value, defaults written out. None is left out.

    Raises:
        UsageError: a name or a path isn't UTF-8.
    """
    tables = plain(config)
    refuse_names_beyond_utf8(tables)
    return tomlkit.dumps(tables)


def plain_choice(choice: Choice, alone: tuple[str, str] | None) -> Any:
    """Return a choice as TOML has it: a text, where that is short for it.

    Args:
        alone: the implementation and the option of it that a text alone is short for.
    """
    table = plain(choice)
    is_short = alone and set(table) == {"use", alone[1]} and table["use"] == alone[0]
    return table[alone[1]] if alone and is_short else table


def plain(value: Any) -> Any:
    """Return a configuration, or a part of it, as what TOML has: tables, lists and plain values."""
    if isinstance(value, Choice):
        return {"use": value.use, **plain(value.options)}
    if attrs.has(type(value)):
        fields = ((attribute, getattr(value, attribute.name)) for attribute in attrs.fields(type(value)))
        return {
            attribute.name: plain_choice(content, attribute.metadata.get("alone"))
            if isinstance(content, Choice)
            else plain(content)
            for attribute, content in fields
            if content is not None
        }
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, ByteSize) else value
