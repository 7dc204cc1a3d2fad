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

from stackwise_core.config.load import structure
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import select_device, set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.registry import Registry

GOLDEN = Path(__file__).parents[2] / "golden"


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
        "seconds": sum(phase.seconds for phase in result.phases),
        "peak_bytes": max(phase.peak_bytes for phase in result.phases),
        "machine": machine(setup.config.run.device),
        "curves": curves(),
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


def curves() -> str:
    """A hash of the golden runs, so that a page can tell whether its results are of code that trains alike."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(GOLDEN.glob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    print(json.dumps(run_trial(request["config"])))


if __name__ == "__main__":
    main()
