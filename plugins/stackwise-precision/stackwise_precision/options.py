"""Options of the precisions."""

from typing import Any, Literal

from attrs import frozen

from stackwise_core.options import above, option


def _compute() -> Any:
    return option(
        "bf16",
        "What matrix products compute in, once the weights are decoded; fp32 is for checks and GPUs without bf16.",
    )


@frozen
class Fp32Options:
    """fp32 has none."""


@frozen
class Bf16Options:
    """bf16 has none."""


@frozen
class Fp16Options:
    cpu_compute: Literal["bf16", "fp16"] = option(
        "bf16",
        "What a CPU computes in. Its fp16 matrix products are some 15 to 30 times slower than its bf16 ones.",
    )
    initial_scale: float = option(65536.0, "What the loss scaler starts with, where fp16 computes.", check=above(0))


@frozen
class Fp8Options:
    compute: Literal["bf16", "fp32"] = _compute()


@frozen
class Nvfp4Options:
    compute: Literal["bf16", "fp32"] = _compute()


@frozen
class NfFp8Options:
    block_size: Literal[16, 64] = option(
        16, "Weights that share a scale. 64 saves 8 % of the bytes, at a larger error."
    )
    compute: Literal["bf16", "fp32"] = _compute()
