"""What the cache and the engine cost and save, as ratios taken in one process.

    .venv/bin/python tests/benchmarks/reuse.py

1. An engine's phase against a hand-written loop over the same draws, at the tokens: what the plumbing costs.
2. A phase whose boundaries are in the cache already, against the same phase that runs the trunk again for each window:
   what the cache saves, beside what the FLOPs allow.

Medians of several alternating repeats. Writes docs/benchmarks/reuse.md.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from attrs import evolve

from stackwise_core.config.load import load
from stackwise_core.training.engine import Engine
from stackwise_core.training.fit import Fit
from stackwise_core.training.learning_rate import learning_rate_factor
from stackwise_core.training.optimizer import make_optimizer
from stackwise_core.training.plan import make_plan
from stackwise_core.training.setup import set_up

ROOT = Path(__file__).parents[2]
REPEATS, STEPS = 5, 60


def engine_for(directory: str, *overrides: str) -> Engine:
    common = [f"run.directory={directory}", f"data.tokens_directory={directory}/tokens", "run.name=bench"]
    common += [f"training.steps_per_stack={STEPS}", "training.window=512", "data.validation_fraction=0.0"]
    common += ["trainer_mode.shares=[]", "trainer_mode.start=random"]  # any stack may be the first to be placed
    config, registry = load(ROOT / "stackwise.toml", overrides=[*common, *overrides])
    setup = set_up(config, registry)
    return Engine(setup, make_plan(setup), registry, lambda event: None)


def fit_of(engine: Engine, phase: int) -> Fit:
    planned = engine._plan.phases[phase]
    engine._residency.place(planned.phase)
    return engine._fit(planned, engine._boundary(planned, []), lambda event: None)


def by_hand(fit: Fit) -> float:
    """Seconds of the first phase's steps, written as one plain loop over draws made beforehand."""
    residency, training = fit.residency, fit.training
    steps = []
    for window in fit.order.epoch(0):
        steps += [fit.drawer.draw(samples, 0) for (samples,) in window.steps]
    ends, stack = residency.ends(0), residency.stack(0)
    parameters = [parameter for _, parameter in residency.trainable()]
    optimizer = make_optimizer(residency.trainable(), training)
    began = time.perf_counter()
    for number, draws in enumerate(steps[:STEPS]):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate_factor(number, STEPS, training)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = stack(ends.embed(draws.inputs, draws.fraction), ends.context(draws.segments))
            losses = ends.cross_entropy(hidden.flatten(0, 1)[draws.masked], draws.targets, stack.norm)
        weights = (1 / draws.progress.clamp(min=1e-9)).float()[draws.rows]
        loss = (weights * losses).sum() / draws.scored
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return time.perf_counter() - began


def ratio(one: list[float], other: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def main() -> None:
    lines = [
        "# What the engine costs and the cache saves",
        "",
        f"Medians of {REPEATS} alternating repeats of {STEPS} steps of `stackwise.toml`'s rack, on a CPU with two",
        "threads.",
        "The command: `.venv/bin/python tests/benchmarks/reuse.py`.",
        "",
        "| time of | over time of | ratio |",
        "| --- | --- | ---: |",
    ]
    with tempfile.TemporaryDirectory() as directory:
        engine = engine_for(directory)
        fit = fit_of(engine, 0)
        fit.run()
        pairs = [(fit.run().seconds, by_hand(fit)) for _ in range(REPEATS)]
        found = ratio(*zip(*pairs, strict=True))
        lines.append(f"| the engine's first phase | a hand-written loop, draws made beforehand | {found} |")
        print(lines[-1], flush=True)
    for stacks in (2, 4, 8):
        with tempfile.TemporaryDirectory() as directory:
            cached = engine_for(directory, f"rack.stacks={stacks}")
            recomputing = engine_for(directory, f"rack.stacks={stacks}")
            # A TOML can't take a table out again, so the cache goes here.
            uncached = evolve(recomputing._setup.implementations, cache=None)
            recomputing._setup = evolve(recomputing._setup, implementations=uncached)
            one, other = fit_of(cached, stacks - 1), fit_of(recomputing, stacks - 1)
            one.run()  # fills the cache
            other.run()
            pairs = [(other.run().seconds, one.run().seconds) for _ in range(REPEATS)]
            allowed = (3 + stacks - 1) / 3
            lines.append(
                f"| stack {stacks - 1} of {stacks}, trunk run again | the same, boundaries on disk | "
                f"{ratio(*zip(*pairs, strict=True))} (FLOPs of blocks: {allowed:.2f}) |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "The engine's side makes its draws while it trains; the hand-written loop has them already, which is a part of",
        "its lead. The rack is tiny (d_model 128, one block a stack), so what a batch costs besides arithmetic (draws,",
        "keys, checksums, reading) weighs as much as a block, and the cache saves less than the FLOPs would allow.",
    ]
    (ROOT / "docs/benchmarks/reuse.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
