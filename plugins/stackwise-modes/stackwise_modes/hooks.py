"""What this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def trainer_mode() -> list[Implementation]:
    options = "stackwise_modes.options"
    return [
        Implementation(
            "blockwise",
            "Stack after stack on the boundary of the frozen ones below",
            "stackwise_modes.blockwise:Blockwise",
            f"{options}:NoOptions",
        ),
        Implementation(
            "layerwise",
            "As blockwise, with every block a stack of its own",
            "stackwise_modes.blockwise:Layerwise",
            f"{options}:NoOptions",
        ),
        Implementation(
            "end_to_end",
            "The whole rack at once, the baseline",
            "stackwise_modes.end_to_end:EndToEnd",
            f"{options}:EndToEndOptions",
        ),
    ]
