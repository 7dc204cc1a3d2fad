"""A training step of next to nothing, so that a plan counts what a process's first step loads, and doesn't guess it."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

WIDTH, TOKENS = 256, 512


@cache
def take_first_step(device: torch.device, dtype: torch.dtype) -> None:
    """Pass a small layer forward and backward and move it by AdamW, once in a process.

    What that loads stays: libraries, kernels, pools of threads. Its size differs from one processor to another.

    Args:
        dtype: that matrix products compute in.
    """
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,)]
    weights = [nn.Parameter(torch.full(shape, 1e-3, device=device)) for shape in shapes]
    hidden = torch.full((1, TOKENS, WIDTH), 0.5, device=device)  # [B, T, D]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        q, k, v = linear(hidden, weights[0]).view(1, TOKENS, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)  # [B, H, T, D/H]
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        passed = silu(linear(seen, weights[1])) * weights[2]
    passed.float().logsumexp(-1).sum().backward()
    torch.optim.AdamW(weights, lr=1e-3).step()
