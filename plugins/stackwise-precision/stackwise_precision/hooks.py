"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def precision() -> list[Implementation]:
    package = "stackwise_precision"
    options = f"{package}.options"
    return [
        Implementation(
            "fp32",
            "32-bit floats throughout, 4 bytes a weight",
            f"{package}.floats:Fp32",
            f"{options}:Fp32Options",
            aliases=("full",),
        ),
        Implementation(
            "bf16",
            "bfloat16: autocast over fp32 masters; frozen stacks are held in it, 2 bytes a weight",
            f"{package}.floats:Bf16",
            f"{options}:Bf16Options",
            aliases=("bfloat16",),
        ),
        Implementation(
            "fp16",
            "16-bit floats with a loss scaler, 2 bytes a frozen weight; a CPU computes in bf16",
            f"{package}.floats:Fp16",
            f"{options}:Fp16Options",
            aliases=("half",),
        ),
        Implementation(
            "fp8",
            "8-bit floats (e4m3) with a scale a row, 1.01 bytes a weight, for frozen stacks",
            f"{package}.fp8:Fp8",
            f"{options}:Fp8Options",
        ),
        Implementation(
            "nvfp4",
            "NVIDIA's 4-bit floats in blocks of 16, 0.56 bytes a weight, on any device, for frozen stacks",
            f"{package}.nvfp4:Nvfp4",
            f"{options}:Nvfp4Options",
        ),
        Implementation(
            "nf_fp8",
            "NF4 codes with fp8 scales in blocks of 16 or 64, 0.56 or 0.52 bytes a weight, for frozen stacks",
            f"{package}.nf_fp8:NfFp8",
            f"{options}:NfFp8Options",
        ),
    ]
