"""Options of the implementations that the core brings."""

from typing import Any

from attrs import frozen

from stackwise_core.options import above, option


def _betas(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError("expected two numbers from 0 to just under 1")


@frozen
class AdamWOptions:
    """Options of every AdamW; subclass it for one of other moments."""

    betas: tuple[float, float] = option((0.9, 0.95), "Decay rates of the two moments.", check=_betas)
    eps: float = option(1e-8, "Added to the root of the second moment.", check=above(0))
