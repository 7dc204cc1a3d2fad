"""Values of keys that nothing sets."""

from typing import Any

import attrs

from stackwise_core.config.choices import hook_fields
from stackwise_core.config.model import Config


def default_of(attribute: "attrs.Attribute[Any]") -> Any:
    """Return a field's default; a dict where it stands for what the TOML would have said; NOTHING where it has none."""
    factory: Any = getattr(attribute.default, "factory", None)
    return factory() if factory else attribute.default


def default_uses() -> dict[str, Any]:
    """Return the tables with the ``use`` of each hook that has a default."""
    data: dict[str, Any] = {}
    for field in hook_fields():
        table, owner = data, Config
        for key in field.path[:-1]:
            table, owner = table.setdefault(key, {}), getattr(attrs.fields(owner), key).type
        if default := default_of(getattr(attrs.fields(owner), field.path[-1])):
            table[field.path[-1]] = default
    return data
