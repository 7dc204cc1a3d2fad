"""Training steps of the engine against a loop written by hand, transformers' Trainer and the device's peaks.

    .venv/bin/python -m tests.benchmarks.engine [--shapes default,256,1024] [--rounds 3] [--threads N] [--device cpu]
                                                [--compile] [--busy] [--json FILE] [--page [FILE]]

For each shape, phases in which

- all of the rack trains, in memory (end to end), or one stack at a time (streamed);
- the last stack trains on a frozen trunk that is run for each window (trunk recomputed);
- the last stack trains on what a cache holds in memory or on disk (input cached).

The loop by hand (steps/by_hand.py) has the same weights, batches, losses and means: its batches were drawn beforehand,
its cached inputs are tensors on the device, its recomputed trunk runs before each step, and beside a streamed phase it
keeps only what enters a stack. Both run deterministic algorithms, under the same allocator. Their losses and norms are
compared first. Ways take turns in rounds in one process; in a round the first third of a way's steps doesn't count.
Where two ways don't fit the memory together (70B), one comes after the other.

Takes some ten minutes on two cores, on which nothing else should run; where others do, --busy with one thread counts
the processor's seconds. FILE and the page have what was measured after each phase.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cattrs import unstructure

from stackwise_core.system.process_state import own_state
from tests.benchmarks.steps.cases import CASES, Options, measure, release
from tests.benchmarks.steps.page import lines
from tests.benchmarks.steps.peaks import copy_peak, matmul_peak
from tests.benchmarks.steps.shapes import ON_A_CPU, ON_A_DEVICE, SHAPES

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "engine.md"
PROSE = """# The engine's steps, against a loop written by hand

How fast a training step is, beside what the same mathematics takes in a loop of plain torch
(`tests/benchmarks/steps/by_hand.py`), in transformers' Trainer with the same model and loss, and beside the device's
peaks. More is better; ratios are medians of {rounds} rounds in which all ways take turns, with their range.
{machine}.

The command: `{command}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)}; on a CPU {','.join(ON_A_CPU)} by default")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}; by default those of the shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's; default: as many as there are cores")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks, too")
    parser.add_argument("--busy", action="store_true", help="count the processor's seconds, not the clock's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, nargs="?", const=PAGE, metavar="FILE")
    options = parser.parse_args()
    for asked, known in ((options.shapes, SHAPES), (options.cases, CASES)):
        if unknown := [name for name in (asked or "").split(",") if name and name not in known]:
            parser.error(f"{', '.join(unknown)}: unknown; expected some of {', '.join(known)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = (options.shapes or ",".join(ON_A_CPU if device == "cpu" else ON_A_DEVICE)).split(",")
    clock = time.process_time if options.busy else time.perf_counter
    with own_state(torch.device(device)):
        found: dict[str, Any] = {
            "machine": machine(device) + ", seconds of the processor" * options.busy,
            "command": f".venv/bin/python -m tests.benchmarks.engine {shlex.join(sys.argv[1:])}",
            "rounds": options.rounds,
            "peaks": {
                "bf16": matmul_peak(device, clock=clock),
                "fp32": matmul_peak(device, torch.float32, clock),
                "copied": copy_peak(device, clock),
            },
            "shapes": {},
        }
        taking = Options(device, options.rounds, options.compile, clock)
        for name in names:
            shape = SHAPES[name]
            cases: dict[str, Any] = {}
            found["shapes"][name] = {"shape": unstructure(shape), "cases": cases}
            for case in options.cases.split(",") if options.cases else shape.cases:
                print(f"{name}, {case}", flush=True)
                with tempfile.TemporaryDirectory() as directory:
                    cases[case] = measured(name, case, Path(directory), taking)
                release(device)
                if options.json is not None:
                    options.json.write_text(json.dumps(found, indent=1))
                if options.page is not None:
                    options.page.write_text(page(found))
    failed = [f"{name}, {case}" for name, each in found["shapes"].items() for case in each["cases"] if "failed" in each]
    print("\n".join(lines(found)))
    if failed:
        raise SystemExit(f"not measured: {'; '.join(failed)}")


def page(found: Mapping[str, Any]) -> str:
    """Return the page of what was measured so far."""
    prose = PROSE.format(rounds=found["rounds"], machine=found["machine"], command=found["command"])
    return "\n".join([prose, *lines(found)]) + "\n"


def measured(name: str, case: str, folder: Path, options: Options) -> dict[str, Any]:
    """Return a case's measurements as JSON, or the reason why it couldn't be measured."""
    try:
        return dict(unstructure(measure(CASES[case], SHAPES[name], folder / "case", options)))
    except Exception as error:
        print(f"  {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def machine(device: str) -> str:
    """Return what the steps ran on, in words."""
    torch_version = f"torch {torch.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {torch_version}, CUDA {torch.version.cuda}"
    threads = torch.get_num_threads()
    return f"A CPU, {threads} {'thread' if threads == 1 else 'threads'}, {torch_version}"


if __name__ == "__main__":
    main()
