"""A rack that is small enough for a test, and hidden states for its stacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stackwise_core.engine.rack.attention_context import AttentionContext
from stackwise_core.engine.rack.blocks import rotary_tables
from stackwise_core.engine.rack.compiled_blocks import through_block
from stackwise_core.engine.rack.rack import Stack, new_stack
from stackwise_core.interfaces.rack_spec import RackSpec


def small_rack(*blocks: int) -> RackSpec:
    """Return a rack of these stacks (by default two, of one block each), 64 wide, with grouped queries."""
    return RackSpec(blocks=blocks or (1, 1), vocab_size=50, seq_len=12, d_model=64, n_heads=4, n_kv_heads=2, d_ff=192)


def frozen_stack(seed: int = 0, spec: RackSpec | None = None) -> Stack:
    """Return a stack of two blocks (or a rack's first) in fp32, with weights of a trained one's size, all frozen."""
    spec = spec or small_rack(2)
    stack = new_stack(spec, 0, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=spec.d_model**-0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return stack.requires_grad_(False)


def hidden_states(seed: int = 0) -> Tensor:
    """Return hidden states [3, 12, 64] in fp32, as they enter :func:`frozen_stack`."""
    return torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(seed))


def through_graphs(stack: nn.Module, x: Tensor) -> Tensor:
    """Compute hidden states at a stack's exit, each block captured by ``torch.compile`` as one graph, but not compiled.

    Raises:
        torch._dynamo.exc.Unsupported: a block can't be captured whole.
    """
    torch._dynamo.reset()
    captured = torch.compile(through_block, fullgraph=True, dynamic=False, backend="eager")
    passed: Tensor = stack(x, everything_visible(), through=lambda block, x, context: captured(block, x, *context))
    return passed


def everything_visible() -> AttentionContext:
    """Return the inputs of attention besides :func:`hidden_states`, with nothing hidden."""
    return AttentionContext(*rotary_tables(small_rack(), 12, torch.device("cpu")), documents=None)
