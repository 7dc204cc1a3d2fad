"""nvfp4: NVIDIA's 4-bit format, e2m1 numbers in blocks of 16."""

import torch
from torch import Tensor

from stackwise_precision import e4m3
from stackwise_precision.decoded import DecodedPrecision
from stackwise_precision.four_bits import FourBitBlocks

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TIES_DOWN = (0.25, 1.25, 2.5, 5.0)
TIES_UP = (0.75, 1.75, 3.5)


class E2m1Blocks(FourBitBlocks):
    """Codes of 2 exponent bits and 1 mantissa bit below the sign ("Pretraining LLMs with NVFP4", arXiv 2509.25149)."""

    name = "e2m1"
    levels = (*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES))
    smallest_block_scale = e4m3.SMALLEST_NORMAL  # as torchao has it

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nearest codes. Ties go to the even code, as in IEEE 754; values beyond 6 become 6."""
        # bucketize counts the bounds below a value: a tie goes up if the bound is a hair lower.
        up = torch.nextafter(torch.tensor(TIES_UP), torch.tensor(0.0))
        bounds = torch.cat((torch.tensor(TIES_DOWN), up)).sort().values.to(values.device)
        magnitude = torch.bucketize(values.abs(), bounds, out_int32=True).to(torch.uint8)
        return magnitude | values.signbit().to(torch.uint8) << 3


class Nvfp4(DecodedPrecision):
    """Frozen weights in NVFP4, for CPUs and GPUs of any age: they are decoded before each matrix product."""

    bytes_per_weight = 0.5 + 1 / 16
    weight_format = E2m1Blocks(block=16)
