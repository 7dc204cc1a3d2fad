"""Options of the float precisions."""

from typing import Literal

from attrs import frozen

from stackwise_core.options import above, option


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
