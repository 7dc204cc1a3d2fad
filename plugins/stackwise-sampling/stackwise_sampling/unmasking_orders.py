"""Orders in which masked positions are filled: those that the network is surest of come first.

All use the network's own probabilities, before temperature and nucleus. Logits are finite [N, V].
"""

from __future__ import annotations

import torch
from torch import Tensor


def confidence(logits: Tensor, candidates: Tensor) -> Tensor:
    """Return the probability [N] of the tokens int64 [N] that would be put there.

    LLaDA's low-confidence remasking (arXiv 2502.09992).
    """
    return logits.softmax(dim=-1).gather(-1, candidates[:, None])[:, 0]


def margin(logits: Tensor) -> Tensor:
    """Return the likeliest token's probability less the second's [N] (arXiv 2502.06768; Dream, arXiv 2508.15487)."""
    best = logits.softmax(dim=-1).topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def negative_entropy(logits: Tensor) -> Tensor:
    """Return the sum of p log p [N], in nats (Dream, arXiv 2508.15487)."""
    p = logits.softmax(dim=-1)
    # log p_i is logit_i - z: read off the likeliest, z costs one logarithm for each position and not V.
    z = logits.amax(dim=-1) - p.amax(dim=-1).log()
    return torch.linalg.vecdot(p, logits) - z


def counts(tokens: int, steps: int) -> list[int]:
    """Return the number of tokens that each step fills: equal, with the remainder spread over the first steps."""
    each, more = divmod(tokens, steps)
    return [each + (step < more) for step in range(steps)]
