"""Estimate of the memory of a forward and backward pass: tensors that blocks keep, those at work, the head's.

Sizes are bytes, a token's unless it says otherwise. D is d_model, F d_ff, K the width of all keys, V the vocabulary.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise_core.interfaces.rack_spec import RackSpec

Kernel = Literal["fused", "fused with a bias", "math"]
"""How attention is computed on a CUDA device: in one kernel, in one that adds a bias, or in several that hold the
weights of each head and pair of tokens."""


@frozen
class Pass:
    """Sizes that decide the memory of a forward and backward pass."""

    tokens: int
    predicted: int
    """Tokens that the head is asked for."""
    half: bool
    """Whether matrix products are in a format of two bytes."""
    on_cpu: bool
    trains: bool = True
    """Whether the blocks' own weights train."""
    kernel: Kernel = "fused"
    compiled: bool = False
    """Whether blocks are compiled, so that what is cheap to compute isn't kept."""
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


def attention_kernel(spec: RackSpec, *, masked: bool, half: bool) -> Kernel:
    """Return how torch's ``scaled_dot_product_attention`` computes on a CUDA device.

    Flash attention takes no mask and no fp32; the kernel that takes them takes no grouped queries
    (aten/native/transformers/cuda/sdp_utils.cpp: check_for_attn_mask, check_tensor_dtype and
    check_batch_size_and_num_heads_dense).

    Args:
        masked: whether it has a mask: rows of several documents, or padding.
    """
    if half and not masked:
        return "fused"
    if spec.n_kv_heads != spec.n_heads:
        return "math"
    return "fused with a bias" if masked else "fused"


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
    elif one.kernel == "math":
        kept += [4 * d] * 3 + [one.width * d]  # q, and k and v for each head, in fp32; what the projection reads
        kept += [4 * spec.n_heads * spec.seq_len]  # weights of attention
    else:
        kept += [one.width * d, one.width * k, one.width * k, one.width * d, 4 * spec.n_heads]
        if one.kernel == "fused with a bias":
            kept += [one.width * spec.seq_len]
    return [each * one.tokens for each in kept]


def weight_copies(parameters: int, one: Pass) -> int:
    """Return the bytes of the copies that autocast makes of weights in fp32, which the graph keeps.

    Args:
        parameters: of the stacks that train and that the graph passes.
    """
    return 2 * parameters if one.half else 0


def at_work_in_a_block(spec: RackSpec, one: Pass) -> int:
    """Return the most bytes that a block's backward pass makes and frees: gradients of what it kept."""
    feed_forward = (3 * one.width * spec.d_ff + 2 * 4 * spec.d_model) * one.tokens
    if one.on_cpu or one.kernel != "math":
        return feed_forward
    # The gradient of attention's weights, that times the weights (softmax_backward_cuda_out, SoftMax.cu), and what
    # leaves softmax. By then the feed-forward layer has given up what it kept, and has the gradients of its weights.
    attention = 3 * 4 * spec.n_heads * spec.seq_len * one.tokens
    given_up = 4 * one.width * spec.d_ff * one.tokens
    weights = 3 * spec.d_model * spec.d_ff * ((4 - weight_copies(1, one)) if one.trains else 0)
    return max(feed_forward, attention - given_up + weights)


def head_tensors(spec: RackSpec, one: Pass) -> int:
    """Return the bytes of the head's inputs, and of a copy of its matrix in the format of products."""
    inputs = one.predicted * (4 + one.width) * spec.d_model
    return inputs + (2 * spec.vocab_size * spec.d_model if one.half else 0)


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
