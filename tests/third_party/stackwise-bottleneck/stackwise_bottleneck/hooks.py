"""Implementations that this distribution registers."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def adapter():
    return [
        Implementation(
            "bottleneck",
            "Two small layers with a nonlinearity between them, after each block",
            "stackwise_bottleneck.bottleneck:Bottleneck",
            "stackwise_bottleneck.options:BottleneckOptions",
        )
    ]
