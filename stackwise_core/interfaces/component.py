"""Base class of all interfaces: an object made from its own typed options."""

from abc import ABC
from typing import Any

import attrs

from stackwise_core.errors import StackwiseError


class Component(ABC):  # noqa: B024 - the interfaces below it say what is abstract
    """An implementation's object, made once a run from the options that the TOML gave it."""

    origin: str = ""
    """Origin for messages, as the registry sets it: ``mask_schedule "sine" of stackwise-sine 1.0``."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def described(self) -> dict[str, Any]:
        """Class and options as JSON values. Two components with equal values behave the same."""
        options = attrs.asdict(self.options) if attrs.has(type(self.options)) else {}
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "options": options}


def origin(component: object) -> str:
    """Return a component's origin, or its class's name if it has none."""
    return getattr(component, "origin", "") or type(component).__name__


class ContractError(StackwiseError):
    """Error of an implementation that broke its interface's contract.

    Args:
        component: the implementation, or its ``origin``.
        said: the method, what it returned, and what was expected.
    """

    def __init__(self, component: object, said: str) -> None:
        who = component if isinstance(component, str) else origin(component)
        super().__init__(f"{who}: {said}. The plugin is at fault: mend it, or use another.")
