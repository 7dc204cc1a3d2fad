"""The LM head in pieces of rows: logits of a large vocabulary are made, used and freed a piece at a time.

Where a loss is a weighted sum over tokens and the weights are known beforehand, a piece's gradient can be computed as
soon as its logits are there. So the logits of no two pieces are in memory together, and none is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear, pad

ROWS_MULTIPLE = 256
"""The head's matrix products have a multiple of this many rows in training."""
FEW_ROWS_MULTIPLE = 32
"""Multiple that the number of rows is padded to where few tokens are to be predicted."""
PIECE_NUMBERS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits of a piece, at most, by device: 64 MiB and 1 GiB in fp32. On a CPU a step takes the same time with pieces of
any size (docs/benchmarks/head.md). On a GPU a piece has to be larger: it reads and writes the head's whole gradient,
which takes as long there as the products of a few hundred rows. That is reckoned, not measured."""

Context = Callable[[], AbstractContextManager[Any]]
"""Maker of a context."""

TokenLosses = Callable[[Tensor, Tensor], Tensor]
"""Losses [N] from logits [N, V] and targets [N]."""


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute cross entropies [N], in nats, of target ids [N] under logits [N, V]."""
    return cross_entropy(logits, targets, reduction="none")


def piece_rows(vocab_size: int, device: torch.device) -> int:
    """Return the number of rows of a piece: a multiple of ``ROWS_MULTIPLE``, at least one."""
    return max(PIECE_NUMBERS.get(device.type, PIECE_NUMBERS["cpu"]) // vocab_size // ROWS_MULTIPLE, 1) * ROWS_MULTIPLE


def pieces(count: int, rows: int) -> Iterator[slice]:
    """Yield slices of so many rows each that cover ``count`` of them."""
    for begin in range(0, count, rows):
        yield slice(begin, min(begin + rows, count))


def padded(hidden: Tensor, multiple: int) -> Tensor:
    """Return hidden states [N, D] with rows of zeros up to the next multiple."""
    # oneDNN keeps a kernel for every shape it has met, and N differs from step to step: a GB in 200 steps.
    return pad(hidden, (0, 0, 0, -len(hidden) % multiple))


def possible(logits: Tensor, mask_id: int) -> Tensor:
    """Return logits [N, V] in fp32 or better, the mask token's at -inf, so that it can't be predicted.

    It is removed before the softmax: the SUBS parameterisation of MDLM (arXiv 2406.07524).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits[:, mask_id] = -torch.inf
    return logits


def losses_in_pieces(
    normed: Tensor,
    head: Tensor,
    targets: Tensor,
    losses_of: TokenLosses,
    *,
    mask_id: int,
    rows: int,
    dtype: torch.dtype,
    context: Context = nullcontext,
) -> Tensor:
    """Compute losses [N] a piece of rows at a time. Arguments as for ``weighted_loss``."""
    matrix, every = head.to(dtype), []
    for piece in pieces(len(normed), rows):
        with context():
            logits = linear(padded(normed[piece], ROWS_MULTIPLE).to(dtype), matrix)
        logits = possible(logits, mask_id)  # [n, V]
        every.append(losses_of(logits[: len(targets[piece])], targets[piece]))
        del logits  # before those of the next piece
    return torch.cat(every)


def weighted_loss(
    normed: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    losses_of: TokenLosses,
    *,
    mask_id: int,
    rows: int,
    dtype: torch.dtype,
    context: Context = nullcontext,
) -> Tensor:
    """Compute the sum of weight times loss over tokens, a piece of rows at a time; its gradients are ready with it.

    They are computed for a gradient of 1 of the sum, and multiplied by what arrives: in fp16 they have the natural size
    of a token's gradient, whatever factor a loss scaler has.

    Args:
        normed: hidden states [N, D], as the head reads them.
        head: its matrix [V, D].
        targets: ids [N].
        weights: of the tokens' losses, [N].
        losses_of: losses [n] of a piece's logits [n, V], where the mask token's is -inf, and targets [n].
        rows: of a piece.
        dtype: that the products are computed in.
        context: in which the logits are, a precision's.
    """
    loss: Tensor = _InPieces.apply(normed, head, targets, weights, losses_of, mask_id, rows, dtype, context)
    return loss


class _InPieces(torch.autograd.Function):
    """Weighted sum of the losses of tokens, whose backward pass hands out the gradients that forward has computed."""

    @staticmethod
    def forward(
        ctx: Any,
        normed: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        losses_of: TokenLosses,
        mask_id: int,
        rows: int,
        dtype: torch.dtype,
        context: Context,
    ) -> Tensor:
        of_hidden, of_head = ctx.needs_input_grad[:2]
        if not of_hidden and not of_head:
            how: dict[str, Any] = {"mask_id": mask_id, "rows": rows, "dtype": dtype, "context": context}
            losses = losses_in_pieces(normed, head, targets, losses_of, **how)
            return (weights.to(losses) * losses).sum()
        matrix = head.to(dtype)  # once, not once a piece
        hidden_gradient = torch.empty_like(normed) if of_hidden else None
        head_gradient = torch.zeros_like(head) if of_head else None
        every = []
        for piece in pieces(len(normed), rows):
            entering = padded(normed[piece], ROWS_MULTIPLE).to(dtype)  # [n, D]
            with context():
                logits = linear(entering, matrix)
            logits = possible(logits, mask_id)  # [n, V]
            losses, gradient = _with_gradient(logits, targets[piece], weights[piece], losses_of)
            del logits
            gradient[:, mask_id] = 0  # of what was put there
            gradient = gradient.to(dtype)
            if hidden_gradient is not None:
                hidden_gradient[piece] = (gradient @ matrix)[: len(losses)]
            if head_gradient is not None:
                _add_product(head_gradient, gradient.t(), entering)
            del gradient
            every.append(losses)
        ctx.gradients = hidden_gradient, head_gradient
        together = torch.cat(every)
        return (weights.to(together) * together).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if each is None else each.mul_(arriving) for each in ctx.gradients]
        ctx.gradients = ()  # a parameter without a gradient takes the tensor itself, if nobody else has it
        return *gradients, None, None, None, None, None, None, None


def _with_gradient(logits: Tensor, targets: Tensor, weights: Tensor, losses_of: TokenLosses) -> tuple[Tensor, Tensor]:
    """Return losses of the first rows of logits, and the gradient of their weighted sum with respect to all rows."""
    logits.requires_grad_()
    with torch.enable_grad():
        losses = losses_of(logits if len(targets) == len(logits) else logits[: len(targets)], targets)
        loss = (weights.to(losses) * losses).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return losses.detach(), gradient


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a tensor, which may have a wider number format."""
    if into.dtype == left.dtype == right.dtype:
        into.addmm_(left, right)
    else:
        into.add_(left @ right)
