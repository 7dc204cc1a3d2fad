"""nf4 and fp4: blocks of 4-bit codes with a scale each, through bitsandbytes' ``Linear4bit``."""

from typing import Literal

import torch
from torch import Tensor, nn

from stackwise_bitsandbytes.frozen import FrozenPrecision
from stackwise_core.interfaces.rack_spec import RackSpec


class _FourBit(FrozenPrecision):
    name: Literal["nf4", "fp4"]
    marks_stack_as = "is_loaded_in_4bit"

    @property
    def bytes_per_weight(self) -> float:
        """Bytes a weight: half a byte, and a scale a block: 4 bytes, or 1 and 4 more for every 256 blocks."""
        scale = 1 + 4 / 256 if self.options.double_quant else 4
        return 0.5 + scale / self.options.block_size

    @property
    def largest_weight(self) -> float:
        return torch.finfo(self.compute).max

    @property
    def tells(self) -> str:
        return f"weight.quant_state.bitsandbytes__{self.name}"

    def refuses(self, rack: RackSpec) -> str:
        widths = {"d_model": rack.d_model, "n_heads x head_dim": rack.n_heads * rack.head_dim, "d_ff": rack.d_ff}
        for key, width in widths.items():
            if reason := _misread(width):
                return f"{self.name} can't hold this rack: {key} = {width}; {reason}."
        return ""

    def fault(self, linear: nn.Linear) -> str:
        reason = _misread(linear.in_features)
        return reason and f"its rows are {linear.in_features} weights wide; {reason}"

    def _block_size(self, linear: nn.Linear) -> int:
        """Return the number of weights of a layer that share a scale.

        On CPUs with AVX-512, bitsandbytes 0.50 decodes rows whose width is a multiple of 16, but not of the block
        size, as if each began a block of its own. Such a layer gets the largest block that divides its rows.
        """
        asked: int = self.options.block_size
        if linear.in_features % 16:
            return asked
        return next(block for block in (256, 128, 64, 32) if block <= asked and linear.in_features % block == 0)

    def quantised(self, linear: nn.Linear) -> nn.Linear:
        from stackwise_bitsandbytes.layers import quantise_4bit

        return quantise_4bit(linear, self.name, self._block_size(linear), self.options.double_quant, self.compute)

    def read(self, linear: nn.Linear, tensors: dict[str, Tensor]) -> nn.Linear:
        from stackwise_bitsandbytes.layers import read_4bit

        return read_4bit(linear, tensors, self.compute)


def _misread(width: int) -> str:
    """Return why rows of this width can't be decoded; empty where they can."""
    if width % 32 != 16:
        return ""
    return (
        "expected a multiple of 32, as bitsandbytes decodes odd multiples of 16 wrongly on CPUs with AVX-512. int8 "
        "takes any width"
    )


class Nf4(_FourBit):
    """4-bit NormalFloat: 16 quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, appendix E)."""

    name = "nf4"


class Fp4(_FourBit):
    """4-bit floats: ±{0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1} times a block's largest weight."""

    name = "fp4"
