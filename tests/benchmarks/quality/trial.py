"""One training run in a process of its own: the request comes as JSON on standard input, the result goes to output."""

import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from cattrs import unstructure

import stackwise_core
from stackwise_core.config.load import structure
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import select_device, set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.registry import Registry
from tests.benchmarks.quality.budgets import total


def run_trial(config: dict[str, Any]) -> dict[str, Any]:
    """Train, and say what came of it and what it took."""
    registry = Registry.discover()
    setup = set_up(structure(config, registry), registry)
    plan = make_plan(setup)
    result = Engine(setup, plan, registry, lambda event: None).run()
    whole = result.likelihoods[-1]  # the last is the deepest, or the total over the bands
    tokens_per_byte = whole.bits_per_byte * math.log(2) / whole.nats_per_token
    return {
        "nats_per_byte": whole.nats_per_token * tokens_per_byte,
        "standard_error": None if whole.standard_error is None else whole.standard_error * tokens_per_byte,
        "likelihoods": unstructure(result.likelihoods),
        "phases": unstructure(result.phases),
        "tokens": total(plan, "tokens"),
        "flops": total(plan, "flops"),
        "seconds": sum(phase.seconds for phase in result.phases),
        "peak_bytes": max(phase.peak_bytes for phase in result.phases),
        "state_bytes": max(
            phase.memory.weights + phase.memory.gradients + phase.memory.optimizer for phase in plan.phases
        ),
        "machine": machine(setup.config.run.device),
        "sources": sources(),
    }


def machine(device: str) -> dict[str, Any]:
    """Describe the machine."""
    selected = select_device(device)
    return {
        "processor": torch.cuda.get_device_name(selected) if selected.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The CPU's name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def sources() -> str:
    """A hash of the code that trains and measures, so that a page can tell whether its results are of one version."""
    root = Path(stackwise_core.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for package in ("data", "inference", "rack", "training"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    print(json.dumps(run_trial(request["config"])))


if __name__ == "__main__":
    main()
