"""Attention over documents that lie one after the other in one packed sequence, without a mask.

On CUDA these are the kernels that torch's own attention over jagged nested tensors calls (torch/nested/_internal/
sdpa.py): flash attention in 16 bits, which ``torch.nn.attention.varlen.varlen_attn`` is a wrapper of (its arguments
differ from release to release), and memory-efficient attention in fp32. Both skip what another document holds, take any
number of documents without a new compilation, and are deterministic where ``torch.use_deterministic_algorithms`` asks
for it. flex_attention would have to be compiled for each shape, also where blocks aren't. On a CPU, torch's flash
attention is called for each document in turn (docs/log.md has the measurement).

Shapes: N packed tokens, S documents, H heads, K key-value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stackwise_core.engine.rack.attention_context import PackedDocuments

FLASH_WIDTH = 256
"""Widest head of torch's flash attention."""
FLASH_MULTIPLE = 8
"""Divisor of the width of a head in it."""

_forward_of = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward_of = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments, *, causal: bool) -> Tensor:
    """Attend within each document, from q [B, T, H, W] to k and v [B, T, K, W]; return [B, T, H, W].

    Args:
        causal: whether a token sees none after it.
    """
    shape = q.shape
    q, k, v = (_computed_in(each.flatten(0, 1)) for each in (q, k, v))
    if documents.order is not None:
        q, k, v = (_Permuted.apply(each, documents.order, documents.back) for each in (q, k, v))
    if q.device.type == "cpu":
        y, _ = attend_each(q, _for_each_head(k, q), _for_each_head(v, q), documents.bounds, causal)
    else:
        y = attend_on_cuda(q, k, v, documents, causal)
    if documents.back is not None:
        y = _Permuted.apply(y, documents.back, documents.order)
    return y.view(shape)


def attend_on_cuda(q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments, causal: bool) -> Tensor:
    """Attend within each document, from q [N, H, W] to k and v [N, K, W] on a GPU; return [N, H, W].

    Not run yet: no machine that this was built on had a GPU. Tests call it on tensors without data.
    """
    bounds, longest, width = documents.bounds, documents.longest, q.shape[-1]
    in_16_bits = q.dtype in (torch.bfloat16, torch.float16)
    if documents.flash and in_16_bits and width <= FLASH_WIDTH and width % FLASH_MULTIPLE == 0:
        flash = torch.ops.aten._flash_attention_forward
        y: Tensor = flash(q, k, v, bounds, bounds, longest, longest, 0.0, causal, False)[0]
        return y
    efficient = torch.ops.aten._efficient_attention_forward
    q, k, v = (each[None] for each in (q, _for_each_head(k, q), _for_each_head(v, q)))
    y = efficient(q, k, v, None, bounds, bounds, longest, longest, 0.0, int(causal), True)[0]
    return y[0]


def _computed_in(x: Tensor) -> Tensor:
    """Return a tensor in autocast's format, as torch casts what its own attention is given."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Repeat key-value heads [N, K, W] for the heads of q [N, H, W] that share them."""
    repeats = q.shape[1] // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


class _Permuted(torch.autograd.Function):
    """Rows in another order. The gradient is read by the inverse order, where index_select's would be added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


@torch.library.custom_op("stackwise::attend_each", mutates_args=())
def attend_each(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attend within each document of packed tokens [N, H, W] on a CPU; return [N, H, W], and log-sum-exps [H, N].

    One operation of torch's, so that compiled blocks take any number and length of documents.
    """
    y, sums = torch.empty_like(q), _sums_of(q)
    for first, count, length in _runs(bounds):
        parts = (_part(each, first, count, length) for each in (q, k, v))
        attended, part_sums = _forward_of(*parts, 0.0, causal)
        _part(y, first, count, length).copy_(attended)
        _part_of_sums(sums, first, count, length).copy_(part_sums)
    return y, sums


@attend_each.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _sums_of(q)


@torch.library.custom_op("stackwise::attend_each_backward", mutates_args=())
def attend_each_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, bounds: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v [N, H, W]."""
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for run in _runs(bounds):
        parts = (_part(each, *run) for each in (gradient, q, k, v, y))
        for into, each in zip(gradients, _backward_of(*parts, _part_of_sums(sums, *run), 0.0, causal), strict=True):
            _part(into, *run).copy_(each)
    return gradients


@attend_each_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, bounds: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bounds, y, sums = ctx.saved_tensors
    return *attend_each_backward(gradient.contiguous(), q, k, v, y, sums, bounds, ctx.causal), None, None


attend_each.register_autograd(_gradients, setup_context=_setup)


def _sums_of(q: Tensor) -> Tensor:
    """Return room for log-sum-exps [H, N] of q [N, H, W]."""
    return q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))


def _runs(bounds: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield runs of documents of the same length, which pass together: first token, documents, tokens of each."""
    places = bounds.tolist()
    first, count = places[0], 0
    for start, stop in zip(places, [*places[1:], places[-1]], strict=True):
        length = (start - first) // count if count else stop - start
        if stop - start != length:
            yield first, count, length
            first, count = start, 0
        count += 1


def _part(x: Tensor, first: int, count: int, length: int) -> Tensor:
    """Return a run's part of packed tokens [N, H, W], as [documents, H, tokens, W]."""
    return x[first : first + count * length].unflatten(0, (count, length)).transpose(1, 2)


def _part_of_sums(sums: Tensor, first: int, count: int, length: int) -> Tensor:
    """Return a run's part of log-sum-exps [H, N], as [documents, H, tokens]."""
    return sums[:, first : first + count * length].unflatten(1, (count, length)).transpose(0, 1)
