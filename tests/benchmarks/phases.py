"""A block-wise run of a shape in this process: its plan, memory and time of each phase, and what lies between them.

    python -m tests.benchmarks.phases SHAPE [--device cpu] [--json FILE]

For shapes of steps/shapes.py; their boundaries are in a cache in memory. Seconds until the plan count from the start of
the process; those until a phase's first step from the last step of the phase before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.steps.shapes import SHAPES, write_texts

BASE = Path(__file__).with_name("blockwise.toml")


def phases_of(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Train a shape's rack block by block, and return what was measured.

    Returns:
        ``plan_seconds``, and for each phase its ``plan`` (as plan.json has it), ``peak_bytes``, ``step_seconds`` (the
        median of the later half), ``tokens`` of a step, ``written_seconds`` from its last step until its weights are on
        disk, ``written_bytes``, and ``first_step_seconds`` from the last step of the phase before until its first one
        is over.
    """
    import stackwise_core as sw
    from stackwise_core.api import prepare
    from stackwise_core.engine.events.events import PhaseDone, StepDone

    before = time.time() - psutil.Process(os.getpid()).create_time()
    shape = SHAPES[name]
    whole, _ = write_texts(shape, folder)
    began = time.perf_counter()
    configuration = sw.load_config(
        BASE,
        overrides=[
            *shape.settings(whole, device),
            f"run.directory={folder}/runs",
            f"data.tokens_directory={folder}/tokens",
            "cache_backend={ use = 'memory' }",
            "trainer_mode.shares=[]",
            "trainer_mode.start=random",
            "training.residency=memory",
        ],
    )
    prepared = prepare(configuration)
    plan_seconds = before + time.perf_counter() - began
    found: list[dict[str, Any]] = [{"steps": [], "plan": each} for each in prepared.plan.to_json()["phases"]]
    runs = folder / "runs"

    def listen(event: object) -> None:
        now, done = time.perf_counter(), [each for each in found if "written" in each]
        if isinstance(event, StepDone):
            found[len(done)]["steps"].append(now)
        elif isinstance(event, PhaseDone):
            size = sum(path.stat().st_size for path in runs.rglob("*.safetensors"))
            found[len(done)] |= {"written": now, "size": size, "peak_bytes": event.result.peak_bytes}

    prepared.run(listen, beyond_machine=True)
    phases, size = list[dict[str, Any]](), 0
    for place, each in enumerate(found):
        steps = each["steps"]
        later = [after - before for before, after in pairwise(steps)][len(steps) // 2 :]
        phases.append(
            {
                "plan": each["plan"],
                "peak_bytes": each["peak_bytes"],
                "tokens": shape.tokens,
                "step_seconds": statistics.median(later),
                "written_seconds": each["written"] - steps[-1],
                "written_bytes": each["size"] - size,
                "first_step_seconds": steps[0] - found[place - 1]["steps"][-1] if place else None,
            }
        )
        size = each["size"]
    return {"shape": name, "plan_seconds": plan_seconds, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = phases_of(options.shape, options.device, Path(directory))
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
