"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def mask_schedule() -> list[Implementation]:
    schedules = "stackwise_masking.schedules"
    options = "stackwise_masking.options"
    return [
        Implementation(
            "constant",
            "One fraction, whatever the progress",
            f"{schedules}:Constant",
            f"{options}:ConstantOptions",
        ),
        Implementation(
            "linear", "Fraction grows evenly with progress", f"{schedules}:Linear", f"{options}:RangeOptions"
        ),
        Implementation(
            "exponential",
            "Fraction grows slowly at first, (e^p - 1)/(e - 1)",
            f"{schedules}:Exponential",
            f"{options}:RangeOptions",
        ),
        Implementation(
            "cosine",
            "Fraction grows slowly at both ends, (1 - cos pi p)/2",
            f"{schedules}:Cosine",
            f"{options}:RangeOptions",
        ),
    ]
