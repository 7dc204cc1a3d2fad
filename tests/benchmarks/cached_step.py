"""A step whose input comes from the cache, against the same step on a tensor that is there; and filling a window.

    OMP_NUM_THREADS=2 .venv/bin/python -m tests.benchmarks.cached_step [--rounds 5] [--clock cpu]

The last of four stacks (two blocks, d_model 256, 256 tokens, batches of 16, bf16; six steps over one window): steps of
the same phase on tensors, from the memory and the disk backend, each read inline and by a thread beside; and the time
in which such a window is made, with entries put inline and by that thread. Ratios within a round, medians of
alternating rounds, of which the first doesn't count. Prints JSON: the speed of tensors is 1. The clock ``cpu`` counts
the process's own time, on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from stackwise_core.engine.boundary.background import Background
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.system.process_state import own_state
from tests.benchmarks.cache import (
    BATCH,
    REFERENCE,
    Tensors,
    alone,
    alternating,
    engine_for,
    filled,
    opened,
    run_again,
)

STEPS = 6
SHAPE = (*REFERENCE, "rack.stacks=4", f"training.steps_per_stack={STEPS}", f"training.window={STEPS * BATCH}")


def beside(boundary: Boundary, *, has_thread: bool) -> Boundary:
    """Return a boundary whose store is called by a thread, or inline."""
    boundary._stop_reading()
    boundary._beside = has_thread
    boundary._background = Background(torch.device("cpu"), has_thread=has_thread)
    return boundary


def measure(directory: Path, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    def clocked(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    ways: dict[str, Callable[[], float]] = {}
    filling: dict[str, Callable[[], float]] = {}
    for use in ("memory", "disk"):
        engine = engine_for(directory, *alone(*SHAPE, f"cache_backend.use={use}"))
        boundary = filled(engine, -1, opened(engine, -1))
        ways.setdefault("tensor", partial(clocked, partial(run_again, engine, -1, Tensors(boundary))))
        for name, has_thread in (("inline", False), ("beside", True)):

            def steps(engine=engine, boundary=boundary, has_thread=has_thread) -> float:
                return clocked(lambda: run_again(engine, -1, beside(boundary, has_thread=has_thread)))

            def fill(engine=engine, boundary=boundary, has_thread=has_thread) -> float:
                beside(boundary, has_thread=has_thread)
                boundary._store.drop()
                boundary._seen.clear()
                (window, *_) = engine.order.epoch(0)
                return clocked(lambda: [*boundary.fill_window(window.chunks, 0), boundary._store.flush()])

            ways[f"{use}, {name}"] = steps
            filling[f"{use}, {name}"] = fill
    found = alternating(ways, rounds)
    ratios = {
        f"step, {name}": statistics.median(one / other for one, other in zip(found["tensor"], found[name], strict=True))
        for name in ways
    }
    fills = alternating(filling, max(2, rounds // 2))
    for use in ("memory", "disk"):
        one, other = fills[f"{use}, inline"], fills[f"{use}, beside"]
        ratios[f"fill, {use}, beside over inline"] = statistics.median(a / b for a, b in zip(one, other, strict=True))
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, own_state():
        found = measure(Path(directory), options.rounds, clock)
    print(json.dumps({**found, "seconds": round(time.perf_counter() - began)}, indent=1))


if __name__ == "__main__":
    main()
