"""nf_fp8: NF4's levels, scaled as in NVFP4 by an fp8 number a block."""

from typing import Any

import torch
from torch import Tensor

from stackwise_precision import e4m3
from stackwise_precision.decoded import DecodedPrecision
from stackwise_precision.four_bits import FourBitBlocks

# 4-bit NormalFloat (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Nf4Blocks(FourBitBlocks):
    """Codes of NF4, which has its levels where normally distributed weights are dense."""

    name = "nf4"
    levels = NF4
    smallest_block_scale = e4m3.SMALLEST

    def nearest(self, values: Tensor) -> Tensor:
        levels = torch.tensor(NF4, device=values.device)
        return torch.bucketize(values, (levels[:-1] + levels[1:]) / 2, out_int32=True).to(torch.uint8)


class NfFp8(DecodedPrecision):
    """Frozen weights as NF4 codes with e4m3 block scales: no standard format, and smaller errors than NVFP4's."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.weight_format = Nf4Blocks(options.block_size)

    @property
    def bytes_per_weight(self) -> float:
        return 0.5 + 1 / self.options.block_size
