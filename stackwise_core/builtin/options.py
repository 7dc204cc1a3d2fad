"""Options of the implementations that the core brings."""

from typing import Any

from attrs import frozen

from stackwise_core.interfaces.objective import ObjectiveOptions
from stackwise_core.options import above, between, option


def _betas(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError("expected two numbers from 0 to just under 1")


@frozen
class AdamWOptions:
    """Options of every AdamW; subclass it for one of other moments."""

    betas: tuple[float, float] = option((0.9, 0.95), "Decay rates of the two moments.", check=_betas)
    eps: float = option(1e-8, "Added to the root of the second moment.", check=above(0))


@frozen
class MaskDiffusionOptions(ObjectiveOptions):
    """Masked diffusion has none."""


def _what_random_leaves(instance: "MLMOptions", attribute: Any, value: float) -> None:
    between(0, 1)(instance, attribute, value)
    if instance.random + value > 1:
        raise ValueError(f"expected at most 1 - random = {1 - instance.random:g}")


@frozen
class MLMOptions(ObjectiveOptions):
    """Options of masked language modelling."""

    weightings = ("mean",)

    random: float = option(
        0.0,
        "Share of the masked positions that holds a random token in place of the mask token (BERT: 0.1).",
        check=between(0, 1),
    )
    keep: float = option(
        0.0,
        "Share of the masked positions that keeps its own token (BERT: 0.1).",
        check=_what_random_leaves,
    )


@frozen
class CLMOptions(ObjectiveOptions):
    """Causal language modelling has none."""

    causal = True
    weightings = ("mean",)
