"""CUDA's kernels of attention over packed documents, for tests/stand_in_cuda.py: the CPU's, document by document.

They take and return what ``aten::_flash_attention_forward``, ``aten::_efficient_attention_forward`` and their backward
operations do. Of what only those read again, the random state, there is nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attend within documents, from q [N, H, W] to k and v [N, K, W]; return [N, H, W] and log-sum-exps [H, N]."""
    from stackwise_core.engine.rack.packed_attention import attend_each

    repeats = q.shape[1] // k.shape[1]
    return attend_each(q, *(each.repeat_interleave(repeats, dim=1) for each in (k, v)), bounds, causal)


def gradients(arriving: Tensor, inputs: Sequence[Tensor], bounds: Tensor, causal: bool) -> list[Tensor]:
    """Return the gradients to q, k and v."""
    from stackwise_core.engine.rack.packed_attention import attend_each_backward

    q, *shared = inputs
    repeats = q.shape[1] // shared[0].shape[1]
    every = [q, *(each.repeat_interleave(repeats, dim=1) for each in shared)]
    forward = attend(*inputs, bounds, causal)
    of_q, *of_heads = attend_each_backward(arriving.contiguous(), *every, *forward, bounds, causal)
    return [of_q, *(each.unflatten(1, (-1, repeats)).sum(dim=2) for each in of_heads)]


def flash_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    nothing = torch.zeros(2, dtype=torch.int64)
    return *attend(q, k, v, bounds, rest[4]), nothing, nothing.clone(), q.new_zeros(0)


def flash_backward(arriving: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    inputs, (bounds, causal) = rest[:3], (rest[5], rest[10])
    return tuple(gradients(arriving, inputs, bounds, causal))


def efficient_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **_: Any) -> tuple[Any, ...]:
    nothing, (bounds, mq, mk, mask) = torch.zeros((), dtype=torch.int64), (rest[1], rest[3], rest[4], rest[6])
    y, sums = attend(q[0], k[0], v[0], bounds, mask == 1)
    return y[None], sums[None], nothing, nothing.clone(), mq, mk


def efficient_backward(arriving: Tensor, *rest: Any, **_: Any) -> tuple[Tensor | None, ...]:
    inputs, (bounds, mask) = [each[0] for each in rest[:3]], (rest[5], rest[13])
    return *(each[None] for each in gradients(arriving[0], inputs, bounds, mask == 1)), None


KERNELS = {
    "_flash_attention_forward": flash_forward,
    "_flash_attention_backward": flash_backward,
    "_efficient_attention_forward": efficient_forward,
    "_efficient_attention_backward": efficient_backward,
}
