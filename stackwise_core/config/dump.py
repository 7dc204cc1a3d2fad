"""A configuration as TOML text, from which ``load`` makes it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomlkit

from stackwise_core.config.model import Choice, Config
from stackwise_core.options import ByteSize


def dump(config: Config) -> str:
    """Every table and key with its resolved value, defaults written out; what is None is left out."""
    return tomlkit.dumps(_plain(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return {"use": value.use, **_plain(value.options)}
    if attrs.has(type(value)):
        fields = ((attribute.name, getattr(value, attribute.name)) for attribute in attrs.fields(type(value)))
        return {name: _plain(content) for name, content in fields if content is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(content) for key, content in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, ByteSize) else value
