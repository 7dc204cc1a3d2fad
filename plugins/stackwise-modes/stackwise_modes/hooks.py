"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl

_MODES = (
    ("blockwise", "Stack after stack on the boundary of the frozen ones below", "blockwise:Blockwise", "Blockwise"),
    ("layerwise", "As blockwise, with every block a stack of its own", "blockwise:Layerwise", "Blockwise"),
    ("progressive", "A rack that grows upwards or downwards", "progressive:Progressive", "Progressive"),
    ("fused", "New stacks over a live trunk, frozen or trainable", "fused:Fused", "Fused"),
    ("end_to_end", "The whole rack at once, or a stack at a time", "end_to_end:EndToEnd", "EndToEnd"),
    ("banded", "Depth as time: each stack serves its own mask fractions", "banded:Banded", "Banded"),
)


@hookimpl
def trainer_mode() -> list[Implementation]:
    return [
        Implementation(name, summary, f"stackwise_modes.{mode}", f"stackwise_modes.options:{options}Options")
        for name, summary, mode, options in _MODES
    ]
