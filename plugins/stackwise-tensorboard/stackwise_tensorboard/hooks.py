"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def tracker() -> list[Implementation]:
    factory, options = "stackwise_tensorboard.curves:Curves", "stackwise_tensorboard.options:TensorBoardOptions"
    summary = "Losses, rates and likelihoods as curves of TensorBoard"
    return [Implementation("tensorboard", summary, factory, options, packages=("tensorboard",))]
