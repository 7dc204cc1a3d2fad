"""What the five interfaces share: an object made from its own typed options."""

from abc import ABC
from typing import Any

import attrs


class Component(ABC):  # noqa: B024 - the interfaces below it say what is abstract
    """Made once a run from the options that the TOML gave it."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def described(self) -> dict[str, Any]:
        """Its class and its options as JSON values; two that say the same do the same."""
        options = attrs.asdict(self.options) if attrs.has(type(self.options)) else {}
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "options": options}
