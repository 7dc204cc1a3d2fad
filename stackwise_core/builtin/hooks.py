"""Implementations that the core registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def optimizer() -> list[Implementation]:
    factory, options = "stackwise_core.training.adamw:AdamW", "stackwise_core.builtin.options:AdamWOptions"
    return [Implementation("adamw", "torch's AdamW, fused, in fp32", factory, options)]
