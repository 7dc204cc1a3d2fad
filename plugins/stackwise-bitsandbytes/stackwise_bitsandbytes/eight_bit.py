"""int8: rows of 8-bit integers with a scale each, in bitsandbytes' ``Linear8bitLt``."""

import torch
from torch import Tensor, nn

from stackwise_bitsandbytes.frozen import FrozenPrecision


class Int8(FrozenPrecision):
    """Precision with weights in int8; activations stay in the compute format."""

    name = "int8"
    marks_stack_as = "is_loaded_in_8bit"
    tells = "SCB"
    bytes_per_weight = 1 + 4 / 512
    """Bytes a weight, for rows of 512 weights: a row has one scale of 4 bytes."""
    largest_weight = torch.finfo(torch.float16).max
    """Bytes a weight, for rows of 512 weights: a row has one scale of 4 bytes."""

    def quantised(self, linear: nn.Linear) -> nn.Linear:
        from stackwise_bitsandbytes.layers import quantise_8bit

        return quantise_8bit(linear, self.compute)

    def read(self, linear: nn.Linear, tensors: dict[str, Tensor]) -> nn.Linear:
        from stackwise_bitsandbytes.layers import read_8bit

        return read_8bit(linear, tensors, self.compute)
