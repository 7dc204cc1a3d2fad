"""Time of a block's training step: over documents in a row, and compiled.

    .venv/bin/python -m tests.benchmarks.blocks [--rounds 9] [--compile]

A block's forward and backward pass in bf16 over fp32 weights, over rows of one document each, over rows of documents of
some 200 tokens each, and over the same rows through a dense mask. All ways take their turn in each round; a time is the
processor's, which others on the machine weigh on least, and the shortest of all rounds. With ``--compile`` also the
seconds that a graph takes to compile, and the time of a compiled block (docs/log.md).
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stackwise_core.engine.rack import blocks
from stackwise_core.engine.rack.attention_context import AttentionContext, Documents
from stackwise_core.engine.rack.blocks import Block, rotary_tables
from stackwise_core.engine.rack.compiled_blocks import through_compiled
from stackwise_core.interfaces.rack_spec import RackSpec

CPU = torch.device("cpu")
SHAPES = ((128, 256, 16), (256, 256, 16), (1024, 1024, 4))
"""d_model, tokens, rows."""


def documents_in_a_row(rows: int, tokens: int, length: int = 200) -> np.ndarray:
    """Return segments int [rows, tokens] of documents of a third to five thirds of so many tokens."""
    rng, segments = np.random.default_rng(0), np.zeros((rows, tokens), dtype=np.int32)
    for row in segments:
        at, number = 0, 1
        while at < tokens:
            stop = at + int(rng.integers(length // 3, length * 5 // 3))
            row[at:stop] = number
            at, number = stop, number + 1
    return segments


def through_a_mask(visible: Tensor) -> Callable[..., Tensor]:
    """Return attention through a dense mask, in the place of the one over packed documents."""

    def attend(q: Tensor, k: Tensor, v: Tensor, documents: object, *, causal: bool) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2)

    return attend


def compiled_step(block: Block) -> Callable[..., Tensor]:
    """Return a block's forward pass through the function that phases compile."""
    return lambda hidden, *context: through_compiled(block, hidden, AttentionContext(*context))


def _processor_seconds() -> float:
    """Return the processor's seconds of this process and of the compilers that it has called."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    for shape in SHAPES:
        measure(*shape, given.rounds, compiles=given.compile)


def measure(width: int, tokens: int, rows: int, rounds: int, *, compiles: bool) -> None:
    """Print the times at one shape."""
    spec = RackSpec(
        blocks=(1,),
        vocab_size=40,
        seq_len=tokens,
        d_model=width,
        n_heads=max(4, width // 64),
        n_kv_heads=max(4, width // 64),
        d_ff=width * 11 // 4,
    )
    block, hidden = Block(spec), torch.randn(rows, tokens, width).requires_grad_()
    segments = documents_in_a_row(rows, tokens)
    visible = torch.from_numpy(segments[:, None, :, None] == segments[:, None, None])
    tables, several = rotary_tables(spec, tokens, CPU), Documents.of(segments).on(CPU)
    single, packed = AttentionContext(*tables, None), AttentionContext(*tables, several)
    usual = blocks.packed_attention

    def step(run: Callable[..., Tensor], context: AttentionContext) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            passed = run(hidden, *context)
        passed.square().mean().backward()

    def masked() -> None:
        blocks.packed_attention = through_a_mask(visible)
        step(block, packed)
        blocks.packed_attention = usual

    ways = {"one document a row": lambda: step(block, single), "documents in a row": lambda: step(block, packed)}
    ways["through a dense mask"] = masked
    if compiles:
        torch._inductor.config.force_disable_caches = True
        torch._dynamo.reset()
        for name, context in (("one document a row", single), ("documents in a row", packed)):
            began = _processor_seconds()
            step(compiled_step(block), context)
            print(f"{name}: compiled in {_processor_seconds() - began:.1f} s of the processor")
        ways["one document a row, compiled"] = lambda: step(compiled_step(block), single)
        ways["documents in a row, compiled"] = lambda: step(compiled_step(block), packed)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            times[name].append(time.process_time() - began)
    least = {name: min(each) for name, each in times.items()}
    print(f"d_model {width}, {tokens} tokens, {rows} rows:")
    for name, seconds in least.items():
        print(f"  {name}: {1000 * seconds:.1f} ms, {seconds / least['one document a row']:.3f}")


if __name__ == "__main__":
    main()
