"""What the five interfaces share: an object made from its own typed options."""

from abc import ABC
from typing import Any


class Component(ABC):  # noqa: B024 - the interfaces below it say what is abstract
    """Made once a run from the options that the TOML gave it."""

    def __init__(self, options: Any) -> None:
        self.options = options
