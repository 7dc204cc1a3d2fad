"""Racks of 1B to 70B weights, and the machines that they train on, by the plan.

    .venv/bin/python -m tests.benchmarks.memory_table [--check]

Plans racks of the shapes of known models, a block a stack, for a CUDA device, without one being there: nothing is
trained, and no weight is made. Writes the section between the markers of docs/benchmarks/memory.md. With ``--check``
the smallest is also trained for two steps from disk on this machine, in 16 GB of disk and some minutes, and its peak
compared with its plan for a CPU.
"""

import argparse
import tempfile
import textwrap
from pathlib import Path

import torch
from attrs import evolve, frozen

from stackwise_core.config.load import structure
from stackwise_core.engine.phases.setup import Setup, set_up
from stackwise_core.engine.plan.phase_plan import PhasePlan, price
from stackwise_core.registry import Registry
from tests.benchmarks.timed_steps import ROOT, timed_steps

PAGE = ROOT / "docs" / "benchmarks" / "memory.md"
BEGIN, END = "<!-- machines: begin -->", "<!-- machines: end -->"
TEXT = ROOT / "tests" / "golden" / "genesis.txt"


@frozen
class Shape:
    """A model's shape."""

    name: str
    like: str
    d_model: int
    blocks: int
    d_ff: int
    n_heads: int
    n_kv_heads: int


SHAPES = (
    Shape("1B", "TinyLlama", 2048, 22, 5632, 32, 4),
    Shape("3B", "Llama 3.2 3B", 3072, 28, 8192, 24, 8),
    Shape("8B", "Llama 3.1 8B", 4096, 32, 14336, 32, 8),
    Shape("14B", "Qwen3 14B", 5120, 40, 17408, 40, 8),
    Shape("32B", "Qwen3 32B", 5120, 64, 25600, 64, 8),
    Shape("70B", "Llama 3.1 70B", 8192, 80, 28672, 64, 8),
)
LORA = {"use": "lora", "rank": 16}
WAYS: dict[str, dict] = {
    "all weights, AdamW": {},
    "all weights, AdamW in 8 bits": {"optimizer": {"use": "adamw_8bit"}},
    'all weights, AdamW in 8 bits, `clip = "stack"`': {"optimizer": {"use": "adamw_8bit"}, "training.clip": "stack"},
    "new stack over an nf4 trunk, cached": {
        "trainer_mode": {"use": "blockwise"},
        "precision": {"active": "bf16", "trunk": "nf4"},
        "cache_backend": {"use": "disk"},
    },
    "adapters of all stacks over nf4": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.5},
        "precision": {"active": "bf16", "trunk": "nf4"},
        "adapter": {"trunk": LORA},
    },
}
CHECKED = (SHAPES[0], "all weights, AdamW")
CONFIG = """
[run]
name = "checked"
directory = "{directory}/runs"
[data]
corpus = "{text}"
seq_len = 2048
tokens_directory = "{directory}/tokens"
[rack]
stacks = {stacks}
blocks_per_stack = 1
d_model = {d_model}
d_ff = {d_ff}
n_heads = {heads}
n_kv_heads = {kv_heads}
vocab_size = 32000
[training]
batch_size = 1
masks = "resampled"
window = 2
residency = "stream"
offload = "disk"
[checkpoint]
save_stacks = false
[precision]
active = "bf16"
[evaluation]
sequences = 2
draws = 1
[trainer_mode]
use = "few_steps"
steps = 2
"""
DEVICES = (8e9, 24e9, 80e9)
HOSTS = (32e9, 128e9, 1000e9)


def settings(shape: Shape, way: str, directory: str) -> dict:
    """Return the configuration of a shape, trained in a way."""
    data: dict = {
        "run": {"name": "planned", "directory": directory},
        "data": {"corpus": str(TEXT), "seq_len": 2048, "tokens_directory": f"{directory}/tokens"},
        "rack": {
            "stacks": shape.blocks,
            "blocks_per_stack": 1,
            "d_model": shape.d_model,
            "d_ff": shape.d_ff,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
            "vocab_size": 32_000,
        },
        "training": {
            "batch_size": 1,
            "masks": "resampled",
            "residency": "stream",
            "offload": "memory",
            "window": 16,
            "steps_per_stack": 1,
        },
        "precision": {"active": "bf16"},
        "trainer_mode": {"use": "end_to_end"},
        "evaluation": {"sequences": 2, "draws": 1},
    }
    for key, value in WAYS[way].items():
        table, _, name = key.partition(".")
        if name:
            data[table][name] = value
        else:
            data[table] = value
    return data


def planned(setup: Setup) -> PhasePlan:
    """Return the most demanding phase, the last, as it is on a CUDA device."""
    from stackwise_core.engine.phases.adapting import resolve_adapters
    from stackwise_core.engine.phases.plan_checks import resolve_objective

    on_device = evolve(setup, device=torch.device("cuda"))
    training, implementations = setup.config.training, setup.implementations
    phases = implementations.mode.plan(setup.spec, training.budget)
    phases = resolve_adapters(phases, setup.config.adapter, setup.spec, implementations.formats)
    resolved = [resolve_objective(phase, setup.noise, training, implementations.objective) for phase in phases]
    return price(resolved[-1], resolved[:-1], on_device)


def host_class(size: float) -> str:
    """Return the smallest host whose memory holds so much, with a tenth of it free; or a disk."""
    fits = next((host for host in HOSTS if size <= 0.9 * host), None)
    return f"{size / 1e12:.1f} TB of disk" if fits is None else f"{fits / 1e9:.0f} GB"


def rows(directory: str, checked: str) -> list[str]:
    """Return the table's rows; the way that was checked is marked."""
    registry, found = Registry.discover(), []
    for shape in SHAPES:
        for way in WAYS:
            setup = set_up(structure(settings(shape, way, directory), registry), registry)
            plan = planned(setup)
            need, waits = plan.memory.total, plan.offloaded
            cells = [host_class(waits) if need <= 0.95 * device else "-" for device in DEVICES]
            mark = " (checked)" if checked and (shape, way) == CHECKED else ""
            found.append(
                f"| {shape.name} ({setup.spec.parameters / 1e9:.1f}B) | {way}{mark} | {need / 1e9:.1f} GB | "
                f"{waits / 1e9:,.0f} GB | {' | '.join(cells)} |"
            )
            print(found[-1], flush=True)
    return found


def check() -> str:
    """Train the smallest rack from disk on this machine, and say how far its plan for a CPU is from its peak."""
    shape, _ = CHECKED
    with tempfile.TemporaryDirectory() as directory:
        config = CONFIG.format(
            directory=directory, text=TEXT, d_model=shape.d_model, d_ff=shape.d_ff, heads=shape.n_heads,
            kv_heads=shape.n_kv_heads, stacks=shape.blocks,
        )  # fmt: skip
        taken = timed_steps(config, Path(directory))
    plan, peak = taken["planned"]["memory"]["total"], taken["phase_peak"]
    return (
        f"Checked on a CPU: {shape.name}, all weights with AdamW, two steps from disk. A training state of "
        f"{taken['state'] / 1e9:.1f} GB takes {peak / 1e9:.2f} GB at its peak, and the plan for that machine says "
        f"{plan / 1e9:.2f} GB ({plan / peak:.2f}). A step moves {taken['moved'][-1] / 1e9:.0f} GB."
    )


def section(found: list[str], checked: str) -> str:
    """Return the section of the page."""
    words = [
        "By the plan, for a CUDA device: a block a stack, 2,048 tokens a forward pass, bf16, 32,000 token ids, one "
        "stack in memory at a time. The columns say what the device needs, what waits elsewhere, and for devices of "
        "three sizes which host holds that: of 32, 128 or 1,000 GB of memory, or a disk. A dash: it doesn't "
        "fit the device. The command: `.venv/bin/python -m tests.benchmarks.memory_table --check`.",
        "Weights wait in fp32. On a disk there may be two of everything while a checkpoint is made. torch rounds "
        "page-locked buffers up to powers of two, which isn't counted. A frozen trunk in nf4 is read from the run's "
        "directory, as are its masters, which take 4 bytes a weight of disk.",
        checked or "None of these was run.",
    ]
    head = ["rack", "trains", "device", "waits", *(f"{device / 1e9:.0f} GB device" for device in DEVICES)]
    table = ["| " + " | ".join(head) + " |", "| --- | --- | ---: | ---: |" + " ---: |" * len(DEVICES), *found]
    wrapped = ["\n".join(textwrap.wrap(each, 120, break_on_hyphens=False)) for each in words]
    return "\n\n".join(["## What trains on which machine", wrapped[0], "\n".join(table), *wrapped[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="train the smallest rack, too")
    checked = check() if parser.parse_args().check else ""
    with tempfile.TemporaryDirectory() as directory:
        text = section(rows(directory, checked), checked)
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{text}\n{END}\n{after.lstrip()}")


if __name__ == "__main__":
    main()
