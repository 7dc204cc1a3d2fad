"""Options of the quantised precisions."""

from typing import Literal

from attrs import frozen

from stackwise_core.options import option

Compute = Literal["bf16", "fp16", "fp32"]
COMPUTE_HELP = (
    "What matrix products compute in. fp16 is for GPUs older than Ampere; a CPU is some 30 times slower in it than in "
    "bf16, and refuses."
)


@frozen
class FourBitOptions:
    double_quant: bool = option(
        True, "Whether the blocks' scales are quantised too, to 8 bits: 0.516 bytes a weight rather than 0.563."
    )
    block_size: Literal[32, 64, 128, 256] = option(
        64,
        "Weights that share a scale. A layer whose rows it doesn't divide gets the next smaller size that does.",
    )
    compute: Compute = option("bf16", COMPUTE_HELP)


@frozen
class EightBitOptions:
    compute: Compute = option("bf16", COMPUTE_HELP)
