"""Options of the precisions."""

from typing import Any, Literal

from attrs import frozen

from stackwise_core.options import above, option


def _compute() -> Any:
    return option(
        "bf16",
        "Number format of matrix products, after the weights are decoded. fp32 is for checks and GPUs without bf16.",
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
        "Number format of a CPU's matrix products. fp16 is some 15 to 30 times slower than bf16 there.",
    )
    initial_scale: float = option(65536.0, "Initial factor of the loss scaler, where fp16 computes.", check=above(0))


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
