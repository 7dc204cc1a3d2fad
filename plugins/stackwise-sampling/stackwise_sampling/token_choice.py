"""A token for each position, from its logits and a uniform number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stackwise_core.errors import StackwiseError


class NoPredictions(StackwiseError):
    """Logits that are no numbers."""


NEVER = torch.finfo(torch.float32).min
"""The logit of a token whose probability is to be 0."""


def chosen(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return ids int64 [N], of which each has the probability softmax(logits / temperature), cut to its nucleus.

    The softmax is taken, and inverted, in float64: in float32 the rarest tokens are rounded away, and texts come out
    less varied than the network has them (arXiv 2409.02908, section 4).

    Args:
        logits: [N, V]
        uniforms: float64 [N] in [0, 1), multiples of 2^-53.
        temperature: 0 takes the likeliest token, the first of several.
        top_p: see ``nucleus``.

    Raises:
        NoPredictions: logits are no numbers.
    """
    best = logits.amax(dim=-1, keepdim=True)
    if not math.isfinite(best.sum(dtype=torch.float64).item()):  # one NaN in a row is its maximum
        raise NoPredictions("the rack's predictions are no numbers (NaN): did its training diverge?")
    if temperature == 0:
        return logits.argmax(dim=-1)
    exact = logits.double()
    if temperature != 1:
        exact = (exact - best) / temperature  # the best stays finite, however small that is
    p = torch.softmax(exact, dim=-1)
    if top_p < 1:
        p = nucleus(p, top_p)
    sums = running_sums(p)
    # (1 - 2^-53) x is below x as floats are rounded, so a token of probability 0 is never reached.
    return torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)[:, 0]


def running_sums(p: Tensor) -> Tensor:
    """Return the sum of the numbers [N, V] of a row up to each.

    On a CUDA device torch has no deterministic way for floats, and refuses where that is asked for
    (``torch.use_deterministic_algorithms``): they are added up on the CPU.
    """
    return p.cpu().cumsum(dim=-1).to(p.device)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens' probabilities [N, V] until they reach ``top_p``; set the others to 0.

    This is nucleus sampling (arXiv 1904.09751).
    """
    descending, order = p.sort(dim=-1, descending=True, stable=True)
    before = running_sums(descending) - descending
    return torch.zeros_like(p).scatter(-1, order, descending.where(before < top_p, 0))
