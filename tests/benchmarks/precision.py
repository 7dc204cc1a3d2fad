"""What each precision of a frozen trunk costs and saves: bytes, error, time, and the NELBO of a rack finished over it.

    .venv/bin/python tests/benchmarks/precision.py [--results FILE]

1. Bytes of a wide stack (d_model 512, two blocks) as saved and as resident, over its weights.
2. Error of a trained stack's output: stack 1 of `blockwise.toml`'s rack, on validation text, relative to what the stack
   adds to the residual stream in fp32.
3. Time of a training step over three frozen stacks of that width (16 sequences of 256 tokens): `step`, where the trunk
   runs forwards only and a fourth stack trains; `through`, where the gradient passes the trunk down to its input, as it
   does for adapters and prepended stacks. Ratios to bf16 in the same round, medians of several rounds.
4. NELBO: two stacks of `blockwise.toml`'s rack are trained once; a third one is then trained over them, frozen in each
   precision, and the whole is measured so. 600 steps a stack, the same samples and masks for all.

Writes the table in docs/precision.md. Takes about 15 minutes on two cores; nothing else should run during the first
five, in which times are taken. With FILE (JSON) it resumes an interrupted measurement.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from stackwise_core.config.load import load
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import build_implementations, set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.rack.attention_context import AttentionContext
from stackwise_core.engine.rack.blocks import rotary_tables
from stackwise_core.engine.rack.rack import Stack, new_stack
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.registry import Registry
from stackwise_core.system.process_state import own_state

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "precision.md"
BEGIN, END = "<!-- table of tests/benchmarks/precision.py -->", "<!-- end of table -->"
CPU = torch.device("cpu")
PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "int8": "int8",
    "fp8": "fp8",
    "nf4": '{ use = "nf4", double_quant = true }',
    "nf4, single quantisation": '{ use = "nf4", double_quant = false }',
    "fp4": "fp4",
    "nvfp4": "nvfp4",
    "nf_fp8": "nf_fp8",
    "nf_fp8, blocks of 64": '{ use = "nf_fp8", block_size = 64 }',
}
WIDE = RackSpec(blocks=(2, 2, 2, 2), vocab_size=256, seq_len=256, d_model=512, n_heads=8, n_kv_heads=8, d_ff=1408)
ROUNDS = 9


def precision(choice: str, registry: Registry) -> Precision:
    config, _ = load(
        ROOT / "tests/benchmarks/blockwise.toml", overrides=[f"precision.trunk={choice}", "run.device=cpu"]
    )
    return build_implementations(config, registry, CPU).formats.trunk


def wide_stack(index: int) -> Stack:
    return new_stack(WIDE, index, seed=0).requires_grad_(False)


def bytes_a_weight(held: Precision) -> tuple[float, float]:
    """As saved in a file, and as resident."""
    stack = wide_stack(0)
    weights = sum(parameter.numel() for parameter in stack.parameters())
    held.prepare(stack, trainable=False)
    tensors = {name: tensor.contiguous() for name, tensor in held.to_tensors(stack).items()}
    with tempfile.NamedTemporaryFile() as file:
        save_file(tensors, file.name)
        saved = Path(file.name).stat().st_size
    return saved / weights, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / weights


@torch.no_grad()
def output_error(held: Precision, source: Engine) -> float:
    """Of stack 1's output on a batch of validation text, over the norm of what the stack adds in fp32."""
    setup, directory = source.setup, source.files
    forward = setup.forward(directory)
    forward.placement.load_written_ends()
    forward.placement.bring((0,), active=(0,))
    rows = setup.corpus.validation.rows(setup.corpus.validation.evenly_spaced(16))
    inputs = torch.from_numpy(rows.tokens.astype("int64"))
    context = forward.context(torch.from_numpy(rows.segments))
    x = forward.placement.stack(0)(forward.embed(0, inputs, torch.zeros(len(inputs))), context)
    in_full = Stack(setup.spec, 1)
    in_full.load_state_dict(directory.read_stack(1))
    expected = in_full(x, context)
    stack = Stack(setup.spec, 1)
    stack.load_state_dict(directory.read_stack(1))
    held.prepare(stack.requires_grad_(False), trainable=False)
    with held.autocast(CPU):
        found = stack(x, context)
    return float((found - expected).norm() / (expected - x).norm())


class Step:
    """A training step over a frozen trunk."""

    def __init__(self, held: Precision, active: Precision) -> None:
        self.held, self.active = held, active
        self.trunk = [wide_stack(index) for index in range(3)]
        for stack in self.trunk:
            held.prepare(stack, trainable=False)
        self.top = new_stack(WIDE, 3, seed=0)
        self.optimizer = torch.optim.AdamW(self.top.parameters(), lr=1e-4, fused=True)
        self.context = AttentionContext(*rotary_tables(WIDE, WIDE.seq_len, CPU), documents=None)
        self.x = torch.randn(16, WIDE.seq_len, WIDE.d_model, generator=torch.Generator().manual_seed(0))

    def _trunk(self, x: torch.Tensor) -> torch.Tensor:
        with self.held.autocast(CPU):
            for stack in self.trunk:
                x = stack(x, self.context)
        return x

    def step(self) -> float:
        """Seconds, with the trunk forwards only."""
        began = time.perf_counter()
        with torch.no_grad():
            x = self._trunk(self.x)
        self._train(x)
        return time.perf_counter() - began

    def through(self) -> float:
        """Seconds, with the gradient down to the trunk's input."""
        began = time.perf_counter()
        self._train(self._trunk(self.x.clone().requires_grad_()))
        return time.perf_counter() - began

    def _train(self, x: torch.Tensor) -> None:
        with self.active.autocast(CPU):
            self.top.norm(self.top(x, self.context)).float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def step_times(all_held: dict[str, Precision]) -> dict[str, tuple[float, float]]:
    """Ratios of both kinds of step to those over bf16."""
    steps = {name: Step(held, all_held["bf16"]) for name, held in all_held.items()}
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(ROUNDS + 1):
        rounds.append({name: (step.step(), step.through()) for name, step in steps.items()})
    del rounds[0]
    return {
        name: tuple(statistics.median(each[name][kind] / each["bf16"][kind] for each in rounds) for kind in (0, 1))
        for name in steps
    }


def run(directory: str, *overrides: str) -> tuple[Engine, float, float]:
    """A finished run, its NELBO at the last depth, and the standard error."""
    common = [f"run.directory={directory}", f"data.tokens_directory={directory}/tokens", "trainer_mode.shares=[]"]
    common.append("training.steps_per_stack=600")
    config, registry = load(ROOT / "tests/benchmarks/blockwise.toml", overrides=[*common, "run.device=cpu", *overrides])
    setup = set_up(config, registry)
    engine = Engine(setup, make_plan(setup), registry, lambda event: None)
    last = engine.run().likelihoods[-1]
    assert last.standard_error is not None
    return engine, last.nats_per_token, last.standard_error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path)
    file = parser.parse_args().results
    results = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def keep(key: str, value: object) -> None:
        print(f"{key}: {value}", flush=True)
        results[key] = value
        if file is not None:
            file.write_text(json.dumps(results, indent=2))

    registry = Registry.discover()
    held = {name: precision(choice, registry) for name, choice in PRECISIONS.items()}
    if "times" not in results:
        with own_state():
            keep("times", step_times(held))
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        source, _, _ = run(directory, "run.name=source", "rack.stacks=2")
        grown = ["run.name=grown", "rack.stacks=3", f"rack.init_from={source.files.path}"]
        for name, choice in PRECISIONS.items():
            if f"NELBO, {name}" not in results:
                keep(f"NELBO, {name}", run(directory, *grown, f"precision.trunk={choice}")[1:])
        reference, _ = results["NELBO, bf16"]
        for name, each in held.items():
            (saved, resident), (step, through) = bytes_a_weight(each), results["times"][name]
            nelbo, error = results[f"NELBO, {name}"]
            rows.append(
                f"| {name} | {saved:.3f} | {resident:.3f} | {output_error(each, source):.4f} | {step:.2f} | "
                f"{through:.2f} | {nelbo:.4f} ± {error:.4f} | {100 * (nelbo / reference - 1):+.2f} % |"
            )
    table = [
        "| trunk at | bytes a weight, saved | resident | error | step | through | NELBO, nats/byte | to bf16 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(table) + f"\n{after}")


if __name__ == "__main__":
    main()
