"""What a run loses on a busy machine, by how OpenMP's threads wait for one another.

    .venv/bin/python tests/benchmarks/busy.py [--rounds 3] [--at-once 3] [--steps 300]

A rack of one stack of blockwise.toml is trained, alone and several times at once, with threads that spin as torch has
it by default (GOMP_SPINCOUNT=300000, GNU's own default), with threads that sleep at once (OMP_WAIT_POLICY=PASSIVE), and
with threads that spin for some microseconds and then sleep (what Stackwise sets). Each round
has all six cases one after another, so that whatever else the machine does weighs on all of them. Tokens a second are
the run's own, of its slowest process; the result is the median of the rounds. The weights of all runs with as many
steps are compared.

Takes some two minutes a round on two cores. Nothing else should use them. Writes docs/benchmarks/busy.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from stackwise_core.system.files import sha256
from stackwise_core.system.machine import processors
from stackwise_core.system.openmp import WAITING

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "busy.md"
POLICIES = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin briefly": {}}
CRAWLS = 15
"""Where threads spin and cores are short, so many times fewer steps are taken."""
PROSE = """# A busy machine

A rack of one stack of `blockwise.toml` on {cores} cores, alone and {many} times at once, each process with {cores}
threads. Tokens a second of the slowest process; medians of {rounds} rounds, each of which has all six cases. The
command: `.venv/bin/python tests/benchmarks/busy.py`.

| threads that wait | alone | {many} at once |
| --- | ---: | ---: |
{rows}

With threads that spin briefly, a run alone does {alone:.2f} of what it does with threads that spin, and {many} at once
do {busy:.1f} times as much. How far runs with spinning threads fall depends on the machine: on another one of two
cores, three default runs at once did 1.06k each, and 75k alone. The weights are the same to the bit: {same} of {runs}
runs of {steps} steps.

Spinning threads hold a core that the thread they wait for may need. So Stackwise has them sleep after some
microseconds, unless the environment says how they wait (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`, `KMP_BLOCKTIME` or
`KMP_LIBRARY`). It must be said before torch is loaded: in a script of yours, import `stackwise_core` first. Where runs
always share a machine, `OMP_WAIT_POLICY=PASSIVE` gives each more, and fewer threads a run (`run.threads`) help as well.
"""


def train(folder: Path, number: int, steps: int, policy: dict[str, str]) -> subprocess.Popen[str]:
    """Start a run in a folder of its own."""
    taken = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_NUM_THREADS")}
    changes = ["rack.stacks=1", "trainer_mode.shares=[]", "cache_backend.use=memory", "evaluation.sequences=2"]
    changes += [f"training.steps_per_stack={steps}", f"run.threads={processors()}", f"run.directory={folder}/{number}"]
    changes += [f"data.tokens_directory={folder}/tokens"]
    command = [
        sys.executable,
        "-m",
        "stackwise_core.cli",
        "run",
        str(ROOT / "tests/benchmarks/blockwise.toml"),
        "--json",
    ]
    command += [word for change in changes for word in ("--set", change)]
    return subprocess.Popen(
        command, env=taken | policy, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
    )


def measure(folder: Path, at_once: int, steps: int, policy: dict[str, str], weights: list[tuple[int, str]]) -> float:
    """Tokens a second of the slowest of several runs at once; their weights' hashes go to ``weights``, by steps."""
    steps = steps // CRAWLS if policy == POLICIES["spin"] and at_once > 1 else steps
    with tempfile.TemporaryDirectory(dir=folder) as place:
        running = [train(Path(place), number, steps, policy) for number in range(at_once)]
        said = [json.loads(process.communicate()[0]) for process in running]
        for result in said:
            weights.append((steps, sha256(Path(place) / result["directory"] / "stacks" / "000.safetensors")))
    return min(result["phases"][0]["tokens_per_second"] for result in said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    measured: dict[tuple[str, int], list[float]] = {}
    weights: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), 1, CRAWLS, {}, [])  # files and kernels are read once
        for _ in range(asked.rounds):
            for at_once in (1, asked.at_once):
                for name, policy in POLICIES.items():
                    speed = measure(Path(folder), at_once, asked.steps, policy, weights)
                    measured.setdefault((name, at_once), []).append(speed)
                    print(f"{name}, {at_once} at once: {speed:.0f} tokens/s", flush=True)
    median = {case: statistics.median(speeds) for case, speeds in measured.items()}
    rows = [
        f"| {name} | {median[name, 1] / 1000:.1f}k | {median[name, asked.at_once] / 1000:.2f}k |" for name in POLICIES
    ]
    long = [digest for steps, digest in weights if steps == asked.steps]
    page = PROSE.format(
        cores=processors(),
        many=asked.at_once,
        rounds=asked.rounds,
        rows="\n".join(rows),
        alone=median["spin briefly", 1] / median["spin", 1],
        busy=median["spin briefly", asked.at_once] / median["spin", asked.at_once],
        same=max(map(long.count, long)),
        runs=len(long),
        steps=asked.steps,
    )
    PAGE.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
