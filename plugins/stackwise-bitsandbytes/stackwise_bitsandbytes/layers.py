"""A frozen linear layer as bitsandbytes holds it, from a full-precision weight or from its tensors in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stackwise_bitsandbytes.library import bitsandbytes as bnb

QuantType = Literal["nf4", "fp4"]


def _empty_linear4bit(like: nn.Linear, compute: torch.dtype) -> bnb.nn.Linear4bit:
    layer = bnb.nn.Linear4bit(like.in_features, like.out_features, bias=False, compute_dtype=compute, device="meta")
    # Otherwise one evaluation on a CPU with AVX512-BF16 repacks the weight in place for a kernel that has no
    # backward: training steps then lose the gradients to the layer's input silently.
    layer.support_avx512bf16_for_cpu = False
    return layer


def _filled(layer: bnb.nn.Linear4bit, weight: bnb.nn.Params4bit) -> bnb.nn.Linear4bit:
    layer.weight = weight
    # The backward pass dequantises to this dtype: to fp32 and from there to the compute dtype, if it were left.
    weight.quant_state.dtype = layer.compute_dtype
    return layer


def quantise_4bit(
    linear: nn.Linear, quant_type: QuantType, block_size: int, double_quant: bool, compute: torch.dtype
) -> bnb.nn.Linear4bit:
    """Quantise a linear layer without bias, on its device."""
    layer = _empty_linear4bit(linear, compute)
    weight = bnb.nn.Params4bit(
        linear.weight.detach(),
        blocksize=block_size,
        compress_statistics=double_quant,
        quant_type=quant_type,
        module=layer,
    )
    quantised: bnb.nn.Params4bit = weight.to(linear.weight.device)  # type: ignore[misc]  # annotated as a Module's
    return _filled(layer, quantised)


def read_4bit(like: nn.Linear, tensors: Mapping[str, Tensor], compute: torch.dtype) -> bnb.nn.Linear4bit:
    """Return a layer from the tensors of its ``state_dict``, on the device of a layer of its shape."""
    layer = _empty_linear4bit(like, compute)
    statistics = {name: tensor for name, tensor in tensors.items() if name != "weight"}
    weight = bnb.nn.Params4bit.from_prequantized(tensors["weight"], statistics, device=like.weight.device, module=layer)
    return _filled(layer, weight)


class _ProductWithInt8(torch.autograd.Function):
    """Product of x [..., in] and an int8 weight's transpose; only the weight is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return F.linear(x, dequantised_int8(codes, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        codes, scales = ctx.saved_tensors
        return gradient @ dequantised_int8(codes, scales, gradient.dtype), None, None


def dequantised_int8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute codes x scales / 127: int8 [out, in] with the largest weight of each row float32 [out].

    Absmax quantisation of rows: Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339), section 2.1.
    """
    # In place in fp32: mixed operands, as in bitsandbytes' own formula, take torch twice as long on a CPU.
    return codes.float().mul_((scales / 127)[:, None]).to(dtype)


class FrozenLinear8bit(bnb.nn.Linear8bitLt):
    """``Linear8bitLt`` whose activations stay floats, so that every mode and device computes the same.

    bitsandbytes does so too where it trains on a CPU. In evaluation, and on a GPU, it rounds activations to int8 as
    well, with features that have an outlier in any row of the batch left out: what a token gets would then differ
    between evaluation and training, and with the other sequences of its batch. Either way it keeps the input for a
    backward pass that doesn't need it.
    """

    def __init__(self, codes: Tensor, scales: Tensor, compute: torch.dtype) -> None:
        super().__init__(codes.shape[1], codes.shape[0], bias=False, has_fp16_weights=False, device="meta")
        self.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
        self.compute_dtype = compute

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self.weight, "CB", None) is not None:
            self.init_8bit_state()
        return _ProductWithInt8.apply(x.to(self.compute_dtype), self.state.CB, self.state.SCB).to(x.dtype)


def quantise_8bit(linear: nn.Linear, compute: torch.dtype) -> FrozenLinear8bit:
    """Quantise a linear layer without bias, on its device, through fp16."""
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(linear.weight.detach().half())
    return FrozenLinear8bit(codes, scales, compute)


def read_8bit(like: nn.Linear, tensors: Mapping[str, Tensor], compute: torch.dtype) -> FrozenLinear8bit:
    """Return a layer from the tensors of its ``state_dict``, on the device of a layer of its shape."""
    device = like.weight.device
    return FrozenLinear8bit(tensors["weight"].to(device), tensors["SCB"].to(device), compute)
