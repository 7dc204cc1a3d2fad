"""Time of a streamed step against one with activation checkpointing in memory.

    .venv/bin/python -m tests.benchmarks.streaming [--rounds 3] [--threads N]

Four stacks of two blocks, d_model 256, train end to end in steps of 16,384 tokens (16 forward passes of 8 sequences of
128), in processes of their own: in memory with activation checkpointing, and one stack at a time, whose state is on
disk, in the page cache or, dropped after each step, on the disk itself. In each round all ways take their turn, so that
whatever else the machine does weighs on all of them. A way's time is the median of its later steps, its ratio that to
the step in memory of the same round; the page has the median of the rounds. The ratio doesn't depend on d_model: what
is computed and what is moved grow alike.

Takes some four minutes a round on two cores. Writes docs/benchmarks/streaming.md.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.timed_steps import ROOT, timed_steps

PAGE = ROOT / "docs" / "benchmarks" / "streaming.md"
STEPS = 5
CONFIG = """
[run]
name = "timed"
directory = "{directory}/runs"
seed = 1
[data]
seq_len = 128
tokens_directory = "{directory}/tokens"
[rack]
stacks = 4
blocks_per_stack = 2
d_model = 256
n_heads = 4
[training]
batch_size = 8
gradient_accumulation = 16
masks = "resampled"
{training}
[precision]
active = "bf16"
[evaluation]
sequences = 16
draws = 1
[trainer_mode]
use = "few_steps"
steps = {steps}
"""
STREAMED = 'residency = "stream"\noffload = "disk"'
WAYS = {
    "in memory, activation checkpointing": ('residency = "memory"\nactivation_checkpointing = true', False),
    "streamed from disk, in the page cache": (STREAMED, False),
    'the same, `clip = "stack"`': (STREAMED + '\nclip = "stack"', False),
    'the same, `boundary_dtype = "bf16"`': (STREAMED + '\nboundary_dtype = "bf16"', False),
    "streamed from disk, files dropped from the page cache after each step": (STREAMED, True),
}
PROSE = """# What a streamed step costs

Four stacks of two blocks, d_model 256, end to end, 16,384 tokens a step, bf16, on a CPU with {threads}; medians of
{rounds} rounds. The command: `.venv/bin/python -m tests.benchmarks.streaming{flags}`.

| way | seconds a step | against memory (rounds) | MB moved a step | peak memory |
| --- | ---: | ---: | ---: | ---: |
{rows}

The losses of all ways but those in other formats are the same to the bit: {same}. The ratio doesn't depend on d_model:
what is computed and what is moved both grow with its square. With fewer tokens a step the moving weighs more.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way, (training, cold) in WAYS.items():
            with tempfile.TemporaryDirectory() as directory:
                config = CONFIG.format(directory=directory, training=training, steps=STEPS)
                taken = timed_steps(config, Path(directory), cold=cold, threads=options.threads)
            found[way].append(taken)
            print(f"{number + 1} {way}: {seconds(taken):.2f} s a step", flush=True)
    write(found, options)


def seconds(taken: dict) -> float:
    """Return the median of the later steps."""
    return statistics.median(taken["seconds"][1:])


def write(found: dict[str, list[dict]], options: argparse.Namespace) -> None:
    """Write the page."""
    in_memory, *_ = found.values()
    rows = []
    for way, taken in found.items():
        ratios = [seconds(each) / seconds(base) for each, base in zip(taken, in_memory, strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        moved = statistics.median(taken[0]["moved"][1:]) / 1e6
        peak = statistics.median(each["host_peak"] for each in taken) / 1e6
        time = statistics.median(map(seconds, taken))
        rows.append(f"| {way} | {time:.2f} | {statistics.median(ratios):.2f}{spread} | {moved:.0f} | {peak:.0f} MB |")
    exact = [
        each["losses"]
        for (training, _), taken in zip(WAYS.values(), found.values(), strict=True)
        for each in taken
        if "clip" not in training and "bf16" not in training
    ]
    threads = "as many threads as cores (2)" if options.threads is None else f"{options.threads} thread"
    flags = f" --threads {options.threads}" if options.threads else ""
    same = "yes" if all(each == exact[0] for each in exact) else "**no**"
    PAGE.write_text(PROSE.format(threads=threads, rounds=options.rounds, flags=flags, rows="\n".join(rows), same=same))


if __name__ == "__main__":
    main()
