"""Weights as 4-bit codes in blocks along the input, with an e4m3 scale a block and one fp32 scale for all."""

from abc import abstractmethod
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stackwise_core.engine.rack.quantised_linear import WeightFormat
from stackwise_precision import e4m3

SMALLEST_SCALE = 2.0**-100
"""Keeps a weight of zeros from being divided by zero."""


class FourBitBlocks(WeightFormat):
    """weight = level of its code x its block's scale x ``scale``.

    Tensors: ``codes_NAME`` [out, in/2], the even input's code in the low half of each byte; ``block_scales``, e4m3
    numbers [out, in/block]; ``scale``, fp32 []. Rows that end within a block are filled up with zeros.
    """

    name: str
    levels: tuple[float, ...]
    """Value of each of the 16 codes, before scaling."""
    smallest_block_scale: float

    def __init__(self, block: int) -> None:
        self.block = block

    @abstractmethod
    def nearest(self, values: Tensor) -> Tensor:
        """Return the uint8 codes of the levels nearest to fp32 values."""

    def empty(self, out_features: int, in_features: int, device: torch.device) -> dict[str, Tensor]:
        blocks = -(-in_features // self.block)
        return {
            f"codes_{self.name}": torch.empty(out_features, blocks * self.block // 2, dtype=torch.uint8, device=device),
            "block_scales": torch.empty(out_features, blocks, dtype=torch.uint8, device=device),
            "scale": torch.empty((), device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Scale so that the largest block scale is e4m3's largest number, and each block's largest weight a level."""
        weight = F.pad(weight, (0, -weight.shape[1] % self.block))
        blocks = weight.reshape(len(weight), -1, self.block)  # [out, in/block, block]
        largest_level = max(self.levels)
        largest = blocks.abs().amax(dim=-1)
        # The order of these operations is torchao's: its codes and scales are the same to the bit.
        scale = (largest.max() / (e4m3.LARGEST * largest_level)).clamp(min=SMALLEST_SCALE)
        block_scales = e4m3.encode((largest / largest_level / scale).clamp(min=self.smallest_block_scale))
        codes = self.nearest(blocks * (1 / scale / e4m3.decode(block_scales))[..., None]).view(len(weight), -1)
        return {
            f"codes_{self.name}": codes[:, ::2] | codes[:, 1::2] << 4,
            "block_scales": block_scales,
            "scale": scale,
        }

    def decode(self, tensors: tuple[Tensor, ...], in_features: int, dtype: torch.dtype) -> Tensor:
        codes, block_scales, scale = tensors
        fours = codes.view(torch.uint16).long()  # gather wants int64
        weight = _fours(self.levels, dtype, codes.device).expand(len(codes), -1).gather(1, fours).view(dtype)
        # Repeated, not broadcast over the block: torch vectorises the one in bf16, and not the other.
        weight *= (e4m3.decode(block_scales) * scale).to(dtype).repeat_interleave(self.block, dim=1)
        return weight[:, :in_features].contiguous()


@lru_cache
def _fours(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the levels of every four codes that two bytes can hold, [65536], each four as one number of their size.

    So four weights cost one look-up. ``gather`` moves the numbers, whatever they mean.
    """
    codes = torch.arange(2**16)[:, None] >> torch.tensor([0, 4, 8, 12]) & 15  # the first code is the lowest
    fours = torch.tensor(levels, dtype=dtype)[codes].view(-1)
    return fours.view(torch.int64 if dtype.itemsize == 2 else torch.complex128).to(device)
