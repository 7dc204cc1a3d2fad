"""Options of the mask schedules."""

from typing import Any

from attrs import frozen

from stackwise_core.options import between, option


def _above_zero(instance: Any, attribute: Any, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError("expected a fraction above 0 and at most 1")


def _from_min_fraction(instance: "RangeOptions", attribute: Any, value: float) -> None:
    _above_zero(instance, attribute, value)
    if value < instance.min_fraction:
        raise ValueError(f"expected at least min_fraction = {instance.min_fraction}")


@frozen
class ConstantOptions:
    fraction: float = option(0.5, "Share of the tokens that is masked.", check=_above_zero)


@frozen
class RangeOptions:
    min_fraction: float = option(0.15, "Mask fraction at progress 0.", check=between(0.0, 1.0))
    max_fraction: float = option(0.90, "Mask fraction at progress 1.", check=_from_min_fraction)
