"""Racks that are larger than the memory, trained end to end, streamed, for a few steps each, beside their plans.

    .venv/bin/python -m tests.benchmarks.large [--sizes 1B,3B,8B] [--tokens 32768]

With a CUDA device: racks of 1, 3 and 8 billion weights, in stacks of two blocks, with AdamW in 8 bits; what waits is
in host memory, or on disk where that hasn't room. A size whose state fits neither is passed over. Without one: a rack
of 180 million weights whose training state is four times the memory that it may take (``training.memory_budget``); it
is trained once more in memory, to see that the bits are the same.

Writes docs/benchmarks/large.md. Takes 7 minutes on two cores without a device, and 3 GB of disk and of memory.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.steps.peaks import matmul_peak
from tests.benchmarks.timed_steps import ROOT, timed_steps
from tests.hashes import hashes

PAGE = ROOT / "docs" / "benchmarks" / "large.md"
SHAPES = {"1B": (2048, 10), "3B": (3072, 13), "8B": (4096, 20)}
"""Width, and stacks of two blocks, by size."""
SMALL = (512, 28)
STEPS = 3
CONFIG = """
[run]
name = "large"
directory = "{directory}/runs"
seed = 1
[data]
seq_len = {seq_len}
tokens_directory = "{directory}/tokens"
[rack]
stacks = {stacks}
blocks_per_stack = 2
d_model = {width}
n_heads = {heads}
[training]
batch_size = 8
gradient_accumulation = {passes}
masks = "resampled"
window = {window}
{residency}
[precision]
active = "bf16"
[optimizer]
use = "{optimizer}"
[checkpoint]
save_stacks = {keeps}
[evaluation]
sequences = 8
draws = 1
[trainer_mode]
use = "few_steps"
steps = {steps}
"""
COLUMNS = (
    "rack",
    "weights",
    "training state",
    "peak memory",
    "planned",
    "state / peak",
    "waits in",
    "GB moved a step",
    "seconds a step",
    "tokens/s",
    "share of the bf16 peak",
)
PROSE = """# Larger than the memory

End to end, streamed, {steps} steps each; seconds of the later ones. The command:
`.venv/bin/python -m tests.benchmarks.large`. {device}; a large bf16 product reaches {peak:.3g} TFLOP/s there.

{head}
{rows}

Peak memory: of the device, or of the whole process without one. Training state: weights, gradients and moments. GB
moved: what is read from and written to where it waits. The share of the peak counts the operations of a step by the
plan, the second forward pass with them.
{more}"""


def config(directory: str, shape: tuple[int, int], tokens: int, residency: str, *, cuda: bool) -> str:
    """Return the configuration of a rack."""
    width, stacks = shape
    seq_len = 1024 if cuda else 128
    passes = max(1, tokens // (8 * seq_len))
    return CONFIG.format(
        directory=directory,
        seq_len=seq_len,
        stacks=stacks,
        width=width,
        heads=width // (128 if cuda else 64),
        passes=passes,
        window=8 * passes,
        residency=residency,
        optimizer="adamw_8bit" if cuda else "adamw",
        keeps="false" if cuda else "true",
        steps=STEPS,
    )


def row(name: str, taken: dict, peak: float) -> str:
    """Return a row of the table."""
    planned, seconds = taken["planned"], statistics.median(taken["seconds"][1:])
    measured = taken["device_peak"] or taken["host_peak"]
    rate = planned["flops"] / planned["steps"] / seconds
    return (
        f"| {name} | {taken['parameters'] / 1e6:,.0f}M | {taken['state'] / 1e9:.2f} GB | {measured / 1e9:.2f} GB | "
        f"{planned['memory']['total'] / 1e9:.2f} GB | {taken['state'] / measured:.1f} | {planned['offload'] or '-'} | "
        f"{statistics.median(taken['moved'][1:]) / 1e9:.2f} | {seconds:.1f} | {taken['tokens'] / seconds:,.0f} | "
        f"{rate / peak:.2f} |"
    )


def on_a_device(sizes: list[str], tokens: int) -> tuple[list[str], str]:
    """Train each size; return the rows, and what there is to say."""
    peak, rows, more = matmul_peak("cuda"), [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as directory:
            try:
                taken = timed_steps(
                    config(directory, SHAPES[size], tokens, 'residency = "stream"', cuda=True), Path(directory)
                )
            except SystemExit as error:
                more.append(f"{size}: {str(error).splitlines()[-1]}")
                continue
        rows.append(row(size, taken, peak))
        host = f"{size}: host memory of the process at its peak {taken['host_peak'] / 1e9:.1f} GB."
        more.append(host)
        print(rows[-1], host, sep="\n", flush=True)
    return rows, "\n" + "\n".join(f"- {each}" for each in more) + "\n"


def on_the_processor(tokens: int) -> tuple[list[str], str]:
    """Train a rack whose state is four times the budget, and again in memory; return the rows and what came of it."""
    width, stacks = SMALL
    state = 16 * stacks * 24 * width**2  # nearly
    budget = state // 4
    peak = matmul_peak("cpu")
    streamed = f'residency = "auto"\nmemory_budget = "{budget // 1_000_000} MB"'
    ways = {"streamed": streamed, "in memory": 'residency = "memory"\nactivation_checkpointing = true'}
    rows, found = [], []
    for name, residency in ways.items():
        with tempfile.TemporaryDirectory() as directory:
            taken = timed_steps(config(directory, SMALL, tokens, residency, cuda=False), Path(directory))
            (run,) = Path(directory, "runs").iterdir()
            weights = {file: digest for file, digest in hashes(run).items() if file.endswith(".safetensors")}
        rows.append(row(f"{stacks} stacks, {name}", taken, peak))
        found.append((taken["losses"], weights))
        print(rows[-1], flush=True)
    same = "the same to the bit" if found[0] == found[1] else "**not the same**"
    said = (
        f"\nThe streamed run may take {budget / 1e9:.2f} GB (`memory_budget`), a quarter of its training state. Its "
        f"losses and weights\nand those of the run in memory are {same} ({len(found[0][1])} files).\n"
    )
    return rows, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--tokens", type=int, help="of a step; default: 32768 with a device, 4096 without")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    if cuda:
        rows, more = on_a_device(options.sizes.split(","), options.tokens or 32_768)
        device = torch.cuda.get_device_name()
    else:
        rows, more = on_the_processor(options.tokens or 4096)
        threads = torch.get_num_threads()
        device = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    peak = matmul_peak("cuda" if cuda else "cpu") / 1e12
    head = f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}"
    PAGE.write_text(PROSE.format(steps=STEPS, device=device, peak=peak, head=head, rows="\n".join(rows), more=more))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
