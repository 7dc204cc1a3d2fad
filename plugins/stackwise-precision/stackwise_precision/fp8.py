"""fp8: a weight as e4m3 numbers with one fp32 scale an output row."""

import torch
from torch import Tensor

from stackwise_core.engine.rack.quantised_linear import WeightFormat
from stackwise_precision import e4m3
from stackwise_precision.decoded import DecodedPrecision

SMALLEST_SCALE = 2.0**-100
"""Keeps a row of zeros from being divided by zero."""


class E4m3Rows(WeightFormat):
    """weight = e4m3 code x its row's scale, which is the row's largest magnitude over 448.

    Tensors: ``codes_e4m3`` [out, in] and ``row_scales``, fp32 [out, 1].
    """

    def empty(self, out_features: int, in_features: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "codes_e4m3": torch.empty(out_features, in_features, dtype=torch.uint8, device=device),
            "row_scales": torch.empty(out_features, 1, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        scales = (weight.abs().amax(dim=1, keepdim=True) / e4m3.LARGEST).clamp(min=SMALLEST_SCALE)
        return {"codes_e4m3": e4m3.encode(weight / scales), "row_scales": scales}

    def decode(self, tensors: tuple[Tensor, ...], in_features: int, dtype: torch.dtype) -> Tensor:
        codes, scales = tensors
        return e4m3.shifted(codes).to(dtype).mul_((scales * e4m3.SHIFT).to(dtype))


class Fp8(DecodedPrecision):
    """Frozen weights in e4m3, for CPUs and GPUs of any age: they are decoded before each matrix product."""

    bytes_per_weight = 1 + 4 / 512  # a scale a row, of 512 weights say
    weight_format = E4m3Rows()
