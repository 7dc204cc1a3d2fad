"""Modules of a rack: stack, embedding and head, and their initial weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from stackwise_core.engine.rack.attention_context import MASKED_UP_TO, AttentionContext, Documents
from stackwise_core.engine.rack.blocks import Block, RMSNorm, rotary_tables
from stackwise_core.engine.rack.head_pieces import FEW_ROWS_MULTIPLE, padded, possible
from stackwise_core.engine.rack.new_weights import Normal, fill
from stackwise_core.interfaces.rack_spec import RackSpec

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")
"""The projections of a block that write into the residual stream."""


ThroughBlock = Callable[[nn.Module, Tensor, AttentionContext], Tensor]
"""Function that passes hidden states [B, T, D] through a block."""


class Stack(nn.Module):
    """Consecutive blocks, and the exit norm through which the head reads them."""

    def __init__(self, spec: RackSpec, index: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.blocks[index]))
        self.norm = RMSNorm(spec.d_model, eps=spec.norm_eps)

    def forward(self, x: Tensor, context: AttentionContext, *, through: ThroughBlock | None = None) -> Tensor:
        """Pass hidden states [B, T, D] through the blocks; the exit norm belongs to the head.

        Args:
            through: passes them through one block; None: the block itself does.
        """
        for block in self.layers:
            x = block(x, *context) if through is None else through(block, x, context)
        return x


class TimeEmbedding(nn.Module):
    """A sequence's mask fraction as a vector that is added to each of its tokens' embeddings; zero at first.

    Sinusoidal features of 1000 x fraction (Ho et al. 2020, after Vaswani et al. 2017) through a learned projection, or
    a learned vector a time step. Where time is discrete, a fraction counts as the nearest step's.
    """

    steps: Tensor
    frequencies: Tensor

    def __init__(self, spec: RackSpec) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(spec.time_fractions, dtype=torch.float64), persistent=False)
        half = torch.arange(spec.d_model // 2, dtype=torch.float64) / (spec.d_model // 2)
        self.register_buffer("frequencies", 1000 * 10_000.0**-half, persistent=False)
        self.learned = spec.time_encoding == "learned"
        rows = len(spec.time_fractions) if self.learned else spec.d_model
        self.weight = nn.Parameter(torch.zeros(rows, spec.d_model))

    def forward(self, fraction: Tensor) -> Tensor:
        """Return vectors [B, D] of mask fractions float64 [B]."""
        if len(self.steps):
            nearest = (fraction[:, None] - self.steps).abs().argmin(dim=1)
            if self.learned:
                return self.weight[nearest]
            fraction = self.steps[nearest]
        angles = fraction[:, None] * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1).to(self.weight.dtype) @ self.weight


class Ends(nn.Module):
    """The token embedding below the stacks and the LM head above them, tied or not; with a time input, its embedding.

    The embedding's parameters are named ``embed_...``, the head's ``lm_head``. Both mean nothing until they are
    written to.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: RackSpec, mask_id: int) -> None:
        super().__init__()
        self.spec, self.mask_id = spec, mask_id
        self.head_apart: Tensor | None = None
        """Stands for a tied head while its gradient is added up apart."""
        # Without numbers: whoever makes it fills it, and drawing a large matrix takes seconds.
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.d_model, device="meta").to_empty(device="cpu")
        self.embed_time = None if spec.time_encoding is None else TimeEmbedding(spec)
        self.lm_head = None
        if not spec.tie_embeddings:
            head = nn.Linear(spec.d_model, spec.vocab_size, bias=False, device="meta")
            self.lm_head = head.to_empty(device="cpu")
        cos, sin = rotary_tables(spec, spec.seq_len, torch.device("cpu"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def context(self, documents: Documents | Tensor) -> AttentionContext:
        """Return the inputs of attention on the device of these tables.

        Args:
            documents: those of the batch's rows, or its segments int [B, T], from which they are found.
        """
        if isinstance(documents, Tensor):
            documents = Documents.of(documents)
        tokens = documents.tokens
        cos, sin, device = self.cos[:tokens], self.sin[:tokens], self.cos.device
        if device.type == "cpu" and tokens <= MASKED_UP_TO and documents.bounds is not None:
            return AttentionContext(cos, sin, documents.mask(causal=self.spec.attention == "causal"))
        return AttentionContext(cos, sin, documents.on(device))

    def embed(self, inputs: Tensor, fraction: Tensor) -> Tensor:
        """Return hidden states [B, T, D] of input ids [B, T] at mask fractions float64 [B]."""
        hidden: Tensor = self.embed_tokens(inputs)
        return hidden if self.embed_time is None else hidden + self.embed_time(fraction)[:, None]

    @property
    def head(self) -> Tensor:
        """Matrix of the LM head, [V, D]."""
        if self.head_apart is not None:
            return self.head_apart
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """Compute logits [..., V] of hidden states [..., D], read out through a stack's exit norm."""
        return nn.functional.linear(norm(hidden), self.head)

    def predictions(self, hidden: Tensor, norm: nn.Module, rows_multiple: int = FEW_ROWS_MULTIPLE) -> Tensor:
        """Compute logits [N, V] of the tokens possible under hidden states [N, D], in fp32 or better."""
        return possible(self.logits(padded(hidden, rows_multiple), norm)[: len(hidden)], self.mask_id)


@contextmanager
def separate_head(ends: Ends, is_tied: bool) -> Iterator[None]:
    """Add up the gradients of a tied matrix as a head and as an embedding apart, and both at the end.

    So their sum has the same bits, whether the passes of a step go through the whole rack in turn, or through one
    stack after the other together.

    Args:
        is_tied: whether it is one matrix, which trains; else nothing is done.
    """
    if not is_tied:
        yield
        return
    weight = ends.embed_tokens.weight
    ends.head_apart = weight.detach().requires_grad_()
    try:
        yield
        if ends.head_apart.grad is not None:
            weight.grad = ends.head_apart.grad if weight.grad is None else ends.head_apart.grad + weight.grad
    finally:
        ends.head_apart = None


def derived_seed(seed: int, *what: object) -> int:
    """Return a seed for one part of the model: its weights depend on the run's seed and its own name alone."""
    digest = hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def new_ends(spec: RackSpec, mask_id: int, seed: int, given: Mapping[str, Tensor] = MappingProxyType({})) -> Ends:
    """Return embedding and head as they begin: normal with standard deviation ``init_std``.

    Args:
        given: weights that are known already, by name; they are copied.
    """
    ends = Ends(spec, mask_id)
    matrices = [(name, each) for name, each in ends.named_parameters() if not name.startswith("embed_time.")]
    fill(
        [
            Normal(each, spec.init_std, derived_seed(seed, name.removesuffix(".weight")))
            for name, each in matrices
            if name not in given
        ]
    )
    ends.load_state_dict(given, strict=False)
    return ends


def silence(stack: Stack) -> None:
    """Zero the projections into the residual stream, so that the stack changes nothing until it has trained."""
    for name, parameter in stack.named_parameters():
        if name.endswith(INTO_RESIDUAL):
            nn.init.zeros_(parameter)


def new_stack(spec: RackSpec, index: int, seed: int) -> Stack:
    """Return a stack as it begins.

    Matrices are normal with standard deviation ``init_std``, the two of each block that write into the residual
    stream with 1/sqrt(2 x blocks of the rack) of that (GPT-2, Radford et al. 2019, section 2.3). A block's weights
    depend on its place in the rack, however the rack is cut into stacks.
    """
    stack = blank_stack(spec, index, torch.device("cpu"))
    first_block = sum(spec.blocks[:index])
    residual_std = spec.init_std / math.sqrt(2 * sum(spec.blocks))
    matrices = []
    for name, parameter in stack.named_parameters():
        if parameter.ndim == 1:  # of a norm
            nn.init.ones_(parameter)
            continue
        _, offset, within = name.split(".", 2)
        std = residual_std if name.endswith(INTO_RESIDUAL) else spec.init_std
        matrices.append(Normal(parameter, std, derived_seed(seed, "block", first_block + int(offset), within)))
    fill(matrices)
    return stack


def stack_of(spec: RackSpec, index: int, tensors: Mapping[str, Tensor]) -> Stack:
    """Return a stack whose parameters are these tensors themselves, not copies."""
    with torch.device("meta"):
        stack = Stack(spec, index)
    stack.load_state_dict(tensors, assign=True)
    return stack


def blank_stack(spec: RackSpec, index: int, device: torch.device) -> Stack:
    """Return a stack whose weights mean nothing yet; until they are written to, they take no memory."""
    with torch.device("meta"):
        stack = Stack(spec, index)
    return stack.to_empty(device=device)
