"""Implementations that this distribution registers."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def mask_schedule():
    return [
        Implementation(
            "sine",
            "Fraction grows fast at first, sin(pi p/2)",
            "stackwise_sine.sine:Sine",
            "stackwise_sine.options:SineOptions",
        )
    ]
