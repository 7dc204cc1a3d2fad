"""The training step of a rack, written out by hand in torch alone: what the engine's is measured against.

The same mathematics as the rack's, and the same means as the engine's: autocast over fp32 masters, logits of masked
positions alone, fused AdamW, clipping by the norm of all gradients. Batches were drawn beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCK = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
"""Names of a block's weights, in the order in which ``block`` takes them."""
HEAD_ROWS = 256
"""The head's matrix products have a multiple of this many rows: oneDNN makes a kernel for every shape that it meets."""


class Batch(NamedTuple):
    """A batch that was drawn beforehand. B sequences of T tokens, N of them masked."""

    inputs: Tensor
    """int64 [B, T]"""
    masked: Tensor
    """int64 [N], flat positions"""
    targets: Tensor
    """int64 [N]"""
    weights: Tensor
    """fp32 [N], what each loss weighs, divided by the step's normaliser."""
    hidden: Tensor | None = None
    """fp32 [B, T, D] on the device: what enters the lowest stack that trains, where that is there already."""


@frozen
class Widths:
    """Numbers that the mathematics of a rack takes, besides its weights."""

    heads: int
    kv_heads: int
    norm_eps: float
    rope_theta: float
    mask_id: int
    dtype: torch.dtype
    """Number format of matrix products; fp32: no autocast."""
    lr: float
    weight_decay: float
    max_grad_norm: float


class HandWritten:
    """A rack's upper stacks in training, on frozen ones or on hidden states that are there.

    Args:
        embedding: [V, D], tied to the head; it trains if ``embedding_trains``.
        trunk: weights of frozen blocks by their names in ``BLOCK``, from the tokens upwards.
        live: stacks of blocks that train.
        norm: [D], the exit norm of the last of them.
        recomputes: whether only what enters a stack is kept for the backward pass.
        compiled: whether a block is compiled.
    """

    def __init__(
        self,
        widths: Widths,
        embedding: Tensor,
        trunk: Sequence[Mapping[str, Tensor]],
        live: Sequence[Sequence[Mapping[str, Tensor]]],
        norm: Tensor,
        *,
        embedding_trains: bool,
        recomputes: bool = False,
        compiled: bool = False,
    ) -> None:
        self.widths, self.device, self._recomputes = widths, embedding.device, recomputes
        self._embedding = nn.Parameter(embedding.detach().clone(), requires_grad=embedding_trains)
        half = widths.dtype if widths.dtype != torch.float32 else None
        self._trunk = [[_frozen(each[name], half) for name in BLOCK] for each in trunk]
        self._live = [[[nn.Parameter(each[name].detach().clone()) for name in BLOCK] for each in s] for s in live]
        self._norm = nn.Parameter(norm.detach().clone())
        self._block: Callable[..., Tensor] = torch.compile(block, dynamic=False) if compiled else block
        self._tables: tuple[Tensor, Tensor] | None = None
        trains = [self._norm, *(weight for stack in self._live for each in stack for weight in each)]
        self.parameters = [*trains, *([self._embedding] if embedding_trains else [])]
        groups = [
            {"params": [each for each in self.parameters if each.ndim >= 2], "weight_decay": widths.weight_decay},
            {"params": [each for each in self.parameters if each.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=widths.lr, fused=True)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take an optimizer step; return its loss and the norm of its gradient, on the device."""
        loss = self.loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.widths.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    def loss(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch, in nats a token."""
        masked, targets, weights = (self._here(each) for each in (batch.masked, batch.targets, batch.weights))
        hidden = self._entering(batch)  # [B, T, D]
        cos, sin = self._rotary(hidden.shape[1])
        for stack in self._live:
            if self._recomputes:
                hidden = checkpoint(self._through, stack, hidden, cos, sin, use_reentrant=False)
            else:
                hidden = self._through(stack, hidden, cos, sin)
        with self._autocast():
            chosen = hidden.flatten(0, 1).index_select(0, masked)  # [N, D]
            padded = F.pad(chosen, (0, 0, 0, -len(chosen) % HEAD_ROWS))
            logits = F.linear(normed(padded, self._norm, self.widths), self._embedding)[: len(chosen)].float()  # [N, V]
        logits[:, self.widths.mask_id] = -torch.inf
        return (weights * F.cross_entropy(logits, targets, reduction="none")).sum()

    def _entering(self, batch: Batch) -> Tensor:
        """Return what enters the stacks that train [B, T, D]."""
        if batch.hidden is not None:
            return batch.hidden
        hidden = F.embedding(self._here(batch.inputs), self._embedding)
        if self._trunk:
            cos, sin = self._rotary(hidden.shape[1])
            with torch.no_grad():
                hidden = self._through(self._trunk, hidden, cos, sin)
        return hidden

    def _through(self, blocks: Sequence[Sequence[Tensor]], hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        with self._autocast():
            for weights in blocks:
                hidden = self._block(hidden, cos, sin, self.widths, *weights)
        return hidden

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = self.widths.dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)

    def _rotary(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, W], computed once."""
        if self._tables is None:
            width = self._embedding.shape[1] // self.widths.heads
            frequencies = 1.0 / (self.widths.rope_theta ** (torch.arange(0, width, 2, device=self.device) / width))
            angles = torch.outer(torch.arange(tokens, device=self.device).float(), frequencies).repeat(1, 2)
            self._tables = angles.cos(), angles.sin()
        return self._tables


def _frozen(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a frozen weight; a matrix in the format of products, since no step changes it."""
    copy = weight.detach().clone()
    return copy.to(dtype) if dtype is not None and copy.ndim == 2 else copy


def normed(x: Tensor, weight: Tensor, widths: Widths) -> Tensor:
    """Divide by the root of the mean square (Zhang & Sennrich 2019); the result is cast once for all its readers."""
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), widths.norm_eps).to(widths.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + W/2) of heads [B, H, T, W] by their positions' angles."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def block(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    widths: Widths,
    norm_in: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    norm_ff: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    """Pass hidden states [B, T, D] through a block: attention and SwiGLU, each added to what came in."""
    batch, tokens, _ = x.shape
    y = normed(x, norm_in, widths)
    queries, keys, values = (
        F.linear(y, weight).view(batch, tokens, heads, -1).transpose(1, 2)
        for weight, heads in ((q, widths.heads), (k, widths.kv_heads), (v, widths.kv_heads))
    )  # [B, H, T, W]
    # Backwards, a CPU takes three times as long for attention in bf16 as in fp32.
    in_fp32 = x.device.type == "cpu" and torch.is_grad_enabled()
    with torch.autocast("cpu", enabled=False) if in_fp32 else nullcontext():
        if in_fp32:
            queries, keys, values = queries.float(), keys.float(), values.float()
        cos, sin = cos.to(queries.dtype), sin.to(queries.dtype)
        seen = F.scaled_dot_product_attention(
            rotated(queries, cos, sin), rotated(keys, cos, sin), values, enable_gqa=widths.heads != widths.kv_heads
        )
    x = x + F.linear(seen.transpose(1, 2).reshape(batch, tokens, -1), out)
    y = normed(x, norm_ff, widths)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
