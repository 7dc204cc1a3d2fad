"""Blocks as compiled functions: one for each shape, whose inputs are the weights, so that stacks share it.

torch inlines a module that is an argument: its parameters become inputs of the graph, and what is checked before a call
is its kind, not which one it is. So the next block, the next stack and the next phase find what is compiled already. A
block is one graph, without a break. Embedding and head stay outside: the number of masked tokens differs from step to
step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from stackwise_core.engine.rack.attention_context import AttentionContext, PackedDocuments

MOST_GRAPHS = 64
"""Graphs that there may be of a block: with and without gradients, by kind of weights, by layout of documents. torch
stops at 8 by itself."""


def through_compiled(block: nn.Module, hidden: Tensor, context: AttentionContext) -> Tensor:
    """Pass hidden states [B, T, D] through a block as a compiled function."""
    if isinstance(context.documents, PackedDocuments):
        # The number of documents differs from batch to batch.
        torch._dynamo.mark_dynamic(context.documents.bounds, 0)
    with torch._dynamo.config.patch(cache_size_limit=MOST_GRAPHS):
        passed: Tensor = block_function()(block, hidden, *context)
    return passed


@cache
def block_function() -> Callable[..., Tensor]:
    """Return the function of a block, hidden states and the parts of a context; it is compiled when it is called."""
    from torch._inductor import config

    config.compile_threads = 1  # otherwise workers are started, which outlive a process that is killed
    options: dict[str, str | int | bool | Callable[..., object]] = {}
    if hasattr(config, "deterministic"):  # nothing is chosen by timing kernels, so that a resumed run has the same ones
        options["deterministic"] = True
    return torch.compile(through_block, fullgraph=True, dynamic=False, options=options)


def through_block(block: nn.Module, hidden: Tensor, *context: object) -> Tensor:
    """Pass hidden states [B, T, D] through a block."""
    passed: Tensor = block(hidden, *context)
    return passed


def missing_for_compiling(device: torch.device) -> str:
    """Return what a device lacks for compiling; empty where nothing is missing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "torch finds no Triton that works on this GPU"
        there = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        return "" if there else "there is no C compiler, which Triton needs (gcc, clang, or CC names another)"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++, or CXX names another)"
    return ""
