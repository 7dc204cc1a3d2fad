"""What a step of sampling costs over a bare forward pass, and whether time is proportional to the steps.

    .venv/bin/python tests/benchmarks/sampling.py [--run DIR] [--banded DIR]

256 tokens are written without a prompt by the run of blockwise.toml (seq_len 128, so in blocks of 64 under a sliding
window), and by docs/examples/banded.toml. Each step of the sampler is followed by a bare forward pass of the very
tokens that it read, written by hand: embedding, the stacks of the route, norm, and head everywhere. The CPU time of one
thread is taken of both. A ratio is that of the medians over a text's steps, and the median of that over several texts.

Trains the two runs first if they aren't named (some ten minutes on two cores); measuring takes about ten.
Writes docs/benchmarks/sampling.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import stackwise_core as sw
from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
from stackwise_core.system.process_state import own_state
from stackwise_sampling import text_for
from stackwise_sampling.sampling import ORDERS, Sampling, sample

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "sampling.md"
TOKENS = 256
STEPS = (32, 64, 128, 256)
NUMS = (1, 8)
ROUNDS = 3
PROSE = """# What sampling costs

{tokens} tokens without a prompt, by the run of `blockwise.toml` and by `docs/examples/banded.toml` (both see 128 tokens
at a time, so these are blocks of 64), on a CPU. Each step of the sampler is followed by a bare forward pass of the
tokens that it read, written by hand: embedding, the route's stacks, norm, and head at every position. Of both the CPU
time of one thread is taken, so other programs matter little. Medians over the steps of a text, and of that over
{rounds} texts. The command: `.venv/bin/python tests/benchmarks/sampling.py`.

## A step that asks the network, in bare forward passes

128 steps, of one text and of eight at once. The rest is a fixed cost for each pass: contexts of number formats, a
multiple of 32 positions that are read out, and the sampler's choice of positions and tokens. Against a pass of one text
through these small racks (of a banded one a single block works at a time) that counts; more texts, or a larger rack,
hide it.

{costs}

## By steps

One text. In random order some steps fill nothing, and ask nothing. A step's time is the mean of all steps, these too.

{steps}
"""


def trained(file: Path, directory: str) -> Path:
    overrides = {"run.directory": directory, "data.tokens_directory": f"{directory}/tokens", "run.device": "cpu"}
    return sw.run(sw.load_config(file, overrides=overrides)).directory


class Remembering:
    """A rack that remembers what it was asked last."""

    def __init__(self, rack: LoadedRack) -> None:
        self.rack = rack
        self.asked: tuple[Tensor, Tensor, float] | None = None

    def predict(self, inputs: Tensor, segments: Tensor, fraction: float, where: Tensor) -> Tensor:
        self.asked = inputs, segments, fraction
        return self.rack.predict(inputs, segments, fraction, where)


@torch.no_grad()
def bare_forward(rack: LoadedRack, inputs: Tensor, segments: Tensor, fraction: float) -> Tensor:
    """Logits [B, T, V], by the modules alone."""
    (path,) = [route.path for route in rack.routes if route.serves(fraction)]
    forward = rack.run.forward
    ends = forward.placement.ends(path[0])
    hidden = ends.embed(inputs, torch.full((len(inputs),), fraction, dtype=torch.float64))
    context = ends.context(segments)
    for index in path:
        with forward.placement.precision(index).autocast(rack.device):
            hidden = rack.stacks[str(index)](hidden, context)
    with forward.placement.precision(path[-1]).autocast(rack.device):
        return ends.logits(hidden, rack.stacks[str(path[-1])].norm)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.thread_time()
    result = work()
    return time.thread_time() - began, result


def write(rack: LoadedRack, order: str, steps: int, num: int, seed: int) -> dict[str, float]:
    """Seconds of one text's steps, and of bare forwards."""
    remembering, text = Remembering(rack), text_for(rack, length=TOKENS)
    going = sample(
        remembering,
        text,
        Sampling(order=order, steps=steps, num=num, seed=seed),
        seq_len=rack.seq_len,  # type: ignore[arg-type]
    )
    taken, bare, passes = [], [], 0
    while True:
        seconds, step = timed(lambda: next(going, None))
        if step is None:
            break
        taken.append(seconds)
        if step.passes > passes:  # type: ignore[attr-defined]
            passes = step.passes  # type: ignore[attr-defined]
            assert remembering.asked is not None
            asked = remembering.asked
            bare.append(timed(lambda: bare_forward(rack, *asked))[0])  # noqa: B023
    with_pass = sorted(taken)[-passes:]  # the others took microseconds
    return {
        "ratio": statistics.median(with_pass) / statistics.median(bare),
        "per_step": sum(taken) / statistics.median(bare) / len(taken),
        "seconds": sum(taken),
        "bare": statistics.median(bare),
        "passes": passes,
    }


def median_of(rack: LoadedRack, order: str, steps: int, num: int) -> dict[str, float]:
    rounds = [write(rack, order, steps, num, seed) for seed in range(ROUNDS + 1)][1:]
    found = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    print(
        f"{order:10} {steps:4} steps, {num} texts: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True
    )
    return found


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [
        "| " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def page(racks: dict[str, LoadedRack]) -> str:
    costs, lines = [], []
    for name, rack in racks.items():
        for num in NUMS:
            costs.append([name, str(num)] + [f"{median_of(rack, order, 128, num)['ratio']:.3f}" for order in ORDERS])
    for name, rack in racks.items():
        for order in ("random", "confidence"):
            found = [median_of(rack, order, steps, 1) for steps in STEPS]
            lines.append([f"{name}, {order}: forward passes", *(f"{each['passes']:.0f}" for each in found)])
            lines.append(
                ["time over that of 32 steps", *(f"{each['seconds'] / found[0]['seconds']:.2f}" for each in found)]
            )
            lines.append(["time of a step, in bare forwards", *(f"{each['per_step']:.3f}" for each in found)])
    return PROSE.format(
        tokens=TOKENS,
        rounds=ROUNDS,
        costs=table(["run", "texts", *ORDERS], costs),
        steps=table(["steps", *map(str, STEPS)], lines),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--banded", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        first = asked.run or trained(ROOT / "tests/benchmarks/blockwise.toml", directory)
        banded = asked.banded or trained(ROOT / "docs" / "examples" / "banded.toml", directory)
        racks = {
            name: sw.load_rack(path, device="cpu", stream=False)
            for name, path in {"default": first, "banded": banded}.items()
        }
        with own_state():
            PAGE.write_text(page(racks))


if __name__ == "__main__":
    main()
