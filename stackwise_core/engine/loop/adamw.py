"""AdamW of torch (Loshchilov & Hutter 2019, arXiv 1711.05101), fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.interfaces.optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW with two moments of each weight in fp32."""

    options: AdamWOptions
    state_bytes = 8.0

    def make(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=self.options.betas, eps=self.options.eps, fused=True)
