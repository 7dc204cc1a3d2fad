"""Measure the head's loss and gradient with all logits at once, and in pieces of rows (docs/benchmarks/head.md).

Each way runs in a process of its own, so that its peak is its own. The two ways take turns.
"""

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from stackwise_core.engine.rack.head_pieces import cross_entropies, piece_rows, possible, weighted_loss

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def measure(vocab_size: int, d_model: int, tokens: int, dtype: str, rows: int) -> tuple[float, float]:
    """Return seconds of the faster of two steps, and by how many GB they raised this process's peak memory.

    Args:
        rows: of a piece; 0: all at once.
    """
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Parameter(torch.randn(vocab_size, d_model, generator=generator).mul_(0.02))
    hidden = torch.randn(tokens, d_model, generator=generator).requires_grad_()
    targets = torch.randint(0, vocab_size - 1, (tokens,), generator=generator)
    weights, kind, mask_id = torch.ones(tokens), DTYPES[dtype], vocab_size - 1
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        head.grad = None
        began = time.perf_counter()
        if rows:
            loss = weighted_loss(
                hidden, head, targets, weights, cross_entropies, mask_id=mask_id, rows=rows, dtype=kind
            )
        else:
            with torch.autocast("cpu", kind, enabled=kind != torch.float32):
                logits = torch.nn.functional.linear(hidden, head)
            loss = (weights * cross_entropies(possible(logits, mask_id), targets)).sum()
            del logits
        loss.backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def main() -> None:
    """Print a table of both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768, 129282])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, nargs=2, metavar=("VOCAB", "ROWS"), help="measure one way here")
    given = parser.parse_args()
    if given.one is not None:
        vocab_size, rows = given.one
        print(*measure(vocab_size, given.d_model, given.tokens, given.dtype, rows))
        return
    print("| ids | rows of a piece | seconds | over all at once | GB | over all at once |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    shape = ["--d-model", str(given.d_model), "--tokens", str(given.tokens), "--dtype", given.dtype]
    for vocab_size in given.vocab:
        chosen = piece_rows(vocab_size, torch.device("cpu"))
        ways = [0, *sorted({256, 1024, chosen} - {given.tokens})]
        found: dict[int, list[tuple[float, ...]]] = {rows: [] for rows in ways}
        for _ in range(given.rounds):
            for rows in ways:
                command = [sys.executable, __file__, *shape, "--one", str(vocab_size), str(rows)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[rows].append(tuple(map(float, printed.split())))
        seconds, peaks = ({rows: median(each[n] for each in found[rows]) for rows in ways} for n in (0, 1))
        for rows in ways:
            name = "all" if not rows else f"{rows} (chosen)" if rows == chosen else str(rows)
            ratios = seconds[rows] / seconds[0], peaks[rows] / peaks[0]
            print(
                f"| {vocab_size} | {name} | {seconds[rows]:.2f} | {ratios[0]:.2f} | {peaks[rows]:.2f} | "
                f"{ratios[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
