"""What this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def precision() -> list[Implementation]:
    options = "stackwise_precision.options"
    return [
        Implementation("fp32", "32-bit floats throughout", "stackwise_precision.floats:Fp32", f"{options}:Fp32Options"),
        Implementation(
            "bf16",
            "bfloat16: autocast over fp32 masters; a frozen stack is held in it",
            "stackwise_precision.floats:Bf16",
            f"{options}:Bf16Options",
        ),
        Implementation(
            "fp16",
            "16-bit floats with a loss scaler; on a CPU held in them, computed in bf16",
            "stackwise_precision.floats:Fp16",
            f"{options}:Fp16Options",
        ),
    ]
