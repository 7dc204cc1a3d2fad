"""Estimate of the memory of a forward and backward pass: tensors that blocks keep, those at work, the head's.

Sizes are bytes, a token's unless it says otherwise. D is d_model, F d_ff, K the width of all keys, V the vocabulary.
"""

from __future__ import annotations

from attrs import frozen

from stackwise_core.engine.rack.head_pieces import ROWS_MULTIPLE
from stackwise_core.interfaces.rack_spec import RackSpec

KEPT_BY_A_KERNEL = 4
"""Logits' worth of memory, in fp32, that oneDNN keeps for a number of rows: scratch of the head's three products. By
runs of 5, 40 and 120 steps of docs/benchmarks/plan_memory.md's case of 64 sequences (537, 615 and 646 MB), which takes
536 MB after 120 where oneDNN and torch keep 8 kernels (ONEDNN_PRIMITIVE_CACHE_CAPACITY, LRU_CACHE_CAPACITY)."""


@frozen
class Pass:
    """Sizes that decide the memory of a forward and backward pass."""

    tokens: int
    predicted: int
    """Tokens that the head is asked for."""
    half: bool
    """Whether matrix products are in a format of two bytes."""
    on_cpu: bool
    compiled: bool = False
    """Whether blocks are compiled, so that what is cheap to compute isn't kept."""
    spread: int = 0
    """Standard deviation of the tokens that the head is asked for."""
    rows: int | None = None
    """Tokens whose logits are in memory together; None: all that are predicted."""

    @property
    def width(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4

    @property
    def logit_rows(self) -> int:
        """Tokens whose logits are in memory together."""
        return self.predicted if self.rows is None else min(self.rows, self.predicted)


def kept_by_a_block(spec: RackSpec, one: Pass) -> list[int]:
    """Return the sizes of the tensors that a block keeps for its backward pass, for all tokens of the pass."""
    d, k, f = spec.d_model, spec.n_kv_heads * spec.head_dim, spec.d_ff
    kept = [4 * d, 4 * d]  # the residual stream, which both norms read
    kept += [one.width * d] * 2  # their results
    # gate, up, silu(gate), and their product; compiled, silu(gate) is computed anew, and one of the norms' results
    kept += [one.width * f] * (3 if one.compiled else 4)
    if one.compiled:
        kept.remove(one.width * d)
    if one.on_cpu:
        kept += [4 * d, 4 * d, 4 * d, 4 * d, 4 * k, 4 * k]  # norms before their weights; attention in fp32
        kept += [2 * d] if one.half else []  # what the output projection reads
    else:
        keys = k if one.half else d  # in fp32 the kernel takes keys and values of each head
        kept += [one.width * d, one.width * keys, one.width * keys, one.width * d, 4 * spec.n_heads]
    return [each * one.tokens for each in kept]


def weight_copies(parameters: int, one: Pass) -> int:
    """Return the bytes of the copies that autocast makes of weights in fp32, which the graph keeps.

    Args:
        parameters: of the stacks that train and that the graph passes.
    """
    return 2 * parameters if one.half else 0


def at_work_in_a_block(spec: RackSpec, one: Pass) -> int:
    """Return the most bytes that a block's backward pass makes and frees: gradients of the feed-forward layer."""
    return (3 * one.width * spec.d_ff + 2 * 4 * spec.d_model) * one.tokens


def head_tensors(spec: RackSpec, one: Pass) -> int:
    """Return the bytes of the head's inputs, and of a copy of its matrix in the format of products."""
    inputs = one.predicted * (4 + one.width) * spec.d_model
    return inputs + (2 * spec.vocab_size * spec.d_model if one.half else 0)


def kept_by_kernels(spec: RackSpec, one: Pass) -> int:
    """Return the bytes that oneDNN keeps with its kernels of the head, one for each number of rows that it has met.

    They are products in bf16 on a CPU. Numbers of rows within a standard deviation count: the others are rare.
    """
    if not one.on_cpu or not one.half:
        return 0
    met = 1 + min(2 * one.spread, one.logit_rows) / ROWS_MULTIPLE
    return round(met * KEPT_BY_A_KERNEL * 4 * one.logit_rows * spec.vocab_size)


def head_at_work(spec: RackSpec, one: Pass, *, trains: bool) -> int:
    """Return the most bytes that the head makes and frees.

    In fp32 the logarithms of probabilities, the gradient that arrives there and the one that leaves; or, later, the
    logits' gradient in the format of products, padded and not, with the matrix's gradient there and in fp32. In pieces
    the latter is there from the first piece on.
    """
    of_logits = 3 * 4 * one.logit_rows * spec.vocab_size
    if trains and one.logit_rows < one.predicted:
        of_logits += 4 * spec.vocab_size * spec.d_model
    of_matrix = 3 * one.width * one.logit_rows * spec.vocab_size + matrix_gradient(spec, one)
    return max(of_logits, of_matrix if trains else 0)


def matrix_gradient(spec: RackSpec, one: Pass) -> int:
    """Return the bytes of the gradient of the head's matrix while it is made: in fp32, and as products give it."""
    return (4 + (2 if one.half else 0)) * spec.vocab_size * spec.d_model
