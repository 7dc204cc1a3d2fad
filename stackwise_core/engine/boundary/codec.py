"""Codec of hidden states: into the number format of a store, and back.

int8, fp8 and int4 scale each token (int4: each group of its features) by its largest magnitude. A token's codes and
scales lie together as bytes, so that a store keeps rows of one size and needn't know what they mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stackwise_core.engine.rack.number_range import NumberRange
from stackwise_core.interfaces.cache_backend import INT4_GROUP, Layout

LARGEST_E4M3 = 448.0


def encode(hidden: Tensor, layout: Layout, name: str = "an activation") -> Tensor:
    """Encode hidden states fp32 [n, T, D] as entries of a store, [n, T, layout.row].

    Args:
        name: of what they are, for the message.

    Raises:
        OutOfRange: one isn't finite, or the format can't hold it. Scaled formats would make numbers of it.
    """
    held = layout.torch_dtype if layout.torch_dtype is not torch.uint8 else torch.float32
    NumberRange.of(held, 'Take cache_backend.dtype = "fp32".').check(hidden, name)
    if layout.torch_dtype is not torch.uint8:
        return hidden.to(layout.torch_dtype)
    if layout.dtype == "int4":
        groups = hidden.unflatten(-1, (-1, INT4_GROUP))  # [n, T, G, 32]
        scale = _scale(groups, 7.0).to(torch.bfloat16)
        codes = (groups / scale.float()).round().clamp(-7, 7).add(8).to(torch.uint8).flatten(-2)  # [n, T, D]
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        return torch.cat((packed, _bytes(scale.squeeze(-1))), dim=-1)
    if layout.dtype == "int8":
        scale = _scale(hidden, 127.0)
        codes = (hidden / scale).round().to(torch.int8)
    else:
        scale = _scale(hidden, LARGEST_E4M3)
        codes = (hidden / scale).to(torch.float8_e4m3fn)
    return torch.cat((codes.view(torch.uint8), _bytes(scale)), dim=-1)


def decode(entries: Tensor, layout: Layout) -> Tensor:
    """Decode what ``encode`` gave, as fp32 [n, T, D]."""
    if layout.torch_dtype is not torch.uint8:
        return entries.float()
    if layout.dtype == "int4":
        packed, scale = entries.split((layout.d_model // 2, layout.row - layout.d_model // 2), dim=-1)
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(torch.int8) - 8
        groups = codes.float().unflatten(-1, (-1, INT4_GROUP))
        return (
            groups * scale.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()[..., None]
        ).flatten(-2)
    codes, scale = entries.split((layout.d_model, 4), dim=-1)
    numbers = codes.contiguous()
    values = numbers.view(torch.int8).float() if layout.dtype == "int8" else _e4m3(numbers)
    return values * scale.clone(memory_format=torch.contiguous_format).view(torch.float32)


def _scale(values: Tensor, largest: float) -> Tensor:
    """Return the scale that brings the largest magnitude of the last dimension to ``largest``; 1 where all are zero."""
    scale = values.abs().amax(dim=-1, keepdim=True) / largest
    return torch.where(scale > 0, scale, 1.0)


def _bytes(scale: Tensor) -> Tensor:
    return scale.contiguous().view(torch.uint8)


def _e4m3(codes: Tensor) -> Tensor:
    """Return fp32 values of e4m3 codes.

    Sign, exponent and mantissa are put where fp32 has them, and scaled by its other bias.

    Exact, subnormals included, and several times as fast as torch's own cast on a CPU.
    """
    signed = codes.view(torch.int8).to(torch.int32) << 20
    return (signed & (0x87F00000 - (1 << 32))).view(torch.float32) * 2.0**120
