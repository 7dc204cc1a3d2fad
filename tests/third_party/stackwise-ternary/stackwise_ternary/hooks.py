"""Implementations that this distribution registers."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def precision():
    return [
        Implementation(
            "ternary",
            "Minus one, zero or one times a scale a row, 2 bits a weight, for frozen stacks",
            "stackwise_ternary.ternary:Ternary",
            "stackwise_ternary.options:TernaryOptions",
        )
    ]
