"""AdamW of bitsandbytes: moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), paged, or both."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stackwise_bitsandbytes.library import bitsandbytes as bnb
from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.interfaces.optimizer import Optimizer

BLOCK = 256
"""Numbers of an 8-bit moment that share an fp32 scale."""
CODES = 256
"""Number of values that 8 bits can encode."""


class _BitsandbytesAdamW(Optimizer):
    options: AdamWOptions
    made: Callable[..., torch.optim.Optimizer]

    def make(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        return self.made(groups, betas=self.options.betas, eps=self.options.eps)

    def fits(self, key: str, value: Tensor | int | float | bool, parameter: Tensor) -> bool:
        if not isinstance(value, Tensor):
            return key == "step" and type(value) is int and value >= 0
        if key in ("state1", "state2"):
            return value.shape == parameter.shape and value.dtype in (torch.float32, torch.uint8)
        lengths = {"qmap": CODES, "absmax": -(-parameter.numel() // BLOCK)}
        return tuple(value.shape) == (lengths.get(key.rstrip("12")),) and value.dtype == torch.float32


class AdamW8bit(_BitsandbytesAdamW):
    """AdamW with two moments in 8 bits; tensors of fewer than 4096 weights keep 32."""

    state_bytes = 2 * (1 + 4 / BLOCK)
    made = bnb.optim.AdamW8bit


class PagedAdamW(_BitsandbytesAdamW):
    """AdamW with two moments in fp32, which move to main memory when a CUDA device is full."""

    state_bytes = 8.0
    made = bnb.optim.PagedAdamW32bit


class PagedAdamW8bit(_BitsandbytesAdamW):
    """AdamW with two moments in 8 bits, which move to main memory when a CUDA device is full."""

    state_bytes = 2 * (1 + 4 / BLOCK)
    made = bnb.optim.PagedAdamW8bit
