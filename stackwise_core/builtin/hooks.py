"""Implementations that the core registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def optimizer() -> list[Implementation]:
    factory, options = "stackwise_core.engine.loop.adamw:AdamW", "stackwise_core.builtin.options:AdamWOptions"
    return [Implementation("adamw", "torch's AdamW, fused, in fp32", factory, options)]


@hookimpl
def objective() -> list[Implementation]:
    factories, options = "stackwise_core.engine.objective", "stackwise_core.builtin.options"
    return [
        Implementation(
            "mask_diffusion",
            "Masked tokens from what is left, a bound on the likelihood",
            f"{factories}.mask_diffusion:MaskDiffusion",
            f"{options}:MaskDiffusionOptions",
        ),
        Implementation(
            "mlm",
            "BERT's masked language modelling, a mean over masked tokens",
            f"{factories}.mlm:MLM",
            f"{options}:MLMOptions",
        ),
        Implementation(
            "clm",
            "Each token from those before it, with causal attention and no masks",
            f"{factories}.clm:CLM",
            f"{options}:CLMOptions",
        ),
    ]
