"""Ternary weights, four to a byte (Li et al. 2016, "Ternary Weight Networks", arXiv 1605.04711)."""

import torch
import torch.nn.functional as F

from stackwise_core.engine.rack.quantised_linear import WeightFormat
from stackwise_core.engine.rack.quantised_precision import QuantisedPrecision

SHIFTS = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)


class TernaryRows(WeightFormat):
    """weight = (code - 1) x its row's scale. ``codes_ternary`` [out, in/4], ``row_scales`` fp32 [out, 1]."""

    def __init__(self, threshold):
        self.threshold = threshold

    def empty(self, out_features, in_features, device):
        codes = torch.empty(out_features, -(-in_features // 4), dtype=torch.uint8, device=device)
        return {"codes_ternary": codes, "row_scales": torch.empty(out_features, 1, device=device)}

    def encode(self, weight):
        magnitudes = weight.abs()
        large = magnitudes > self.threshold * magnitudes.mean(dim=1, keepdim=True)
        scales = (magnitudes * large).sum(dim=1, keepdim=True) / large.sum(dim=1, keepdim=True).clamp(min=1)
        codes = (weight.sign() * large + 1).to(torch.uint8)
        fours = F.pad(codes, (0, -codes.shape[1] % 4)).unflatten(1, (-1, 4))
        return {"codes_ternary": (fours << SHIFTS.to(codes.device)).sum(dim=2, dtype=torch.uint8), "row_scales": scales}

    def decode(self, tensors, in_features, dtype):
        packed, scales = tensors
        codes = (packed[..., None] >> SHIFTS.to(packed.device) & 3).flatten(1)[:, :in_features]
        return (codes.to(dtype) - 1) * scales.to(dtype)


class Ternary(QuantisedPrecision):
    bytes_per_weight = 0.25 + 4 / 256  # a scale a row, of 256 weights say

    def __init__(self, options):
        super().__init__(options)
        self.weight_format = TernaryRows(options.threshold)
