"""Texts from a finished run of Stackwise.

from stackwise_sampling import sample

sample(rack, "The ", length=40)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackwise_sampling.gapped_text import GappedText
    from stackwise_sampling.sampling import Sampling, Step
    from stackwise_sampling.texts import sample, text_for, unmask

_MODULES = {
    "GappedText": "gapped_text",
    "Sampling": "sampling",
    "Step": "sampling",
    "sample": "texts",
    "text_for": "texts",
    "unmask": "texts",
}
__all__ = ["GappedText", "Sampling", "Step", "sample", "text_for", "unmask"]


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` when it is first used. A listing of plugins imports this package, without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
