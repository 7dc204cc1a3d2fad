"""Runs trials in processes of their own, some at once."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from stackwise_core.cli.quantities import duration
from tests.benchmarks.quality.regimes import REGIMES
from tests.benchmarks.quality.results import append_result
from tests.benchmarks.quality.trials import Trial

ROOT = Path(__file__).parents[3]
ABOUT = ("key", "corpus", "regime", "seed", "steps_per_stack", "flops", "tokens", "state_bytes")
"""Fields of a trial that its result has, too."""


def run_alone(trial: Trial, threads: int, work: Path, running: set[subprocess.Popen[str]]) -> dict[str, Any]:
    """A trial's result; its run directory is gone afterwards.

    Args:
        work: where run directories are made.
        running: holds the process while it runs.

    Raises:
        CalledProcessError: it failed; what it wrote on standard error is with it.
    """
    with tempfile.TemporaryDirectory(dir=work, prefix="trial-") as directory:
        config = trial.config | {"run": trial.config["run"] | {"directory": directory}}
        command = [sys.executable, "-m", "tests.benchmarks.quality.trial"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            cwd=ROOT,
            text=True,
        )
        running.add(process)
        written, errors = process.communicate(json.dumps({"config": config, "threads": threads}))
        running.discard(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, written, errors)
    result: dict[str, Any] = json.loads(written)
    return result


def run_all(trials: Sequence[Trial], path: Path, *, threads: int, jobs: int, console: Console) -> int:
    """Run trials and add their results to the file; one that fails is shown, and the others go on.

    Returns:
        How many failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    began, flops, failed = time.monotonic(), 0.0, 0
    all_flops = sum(trial.flops for trial in trials)
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_alone, trial, threads, path.parent, running): trial for trial in trials}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    trial = waiting.pop(future)
                    flops += trial.flops
                    spent = time.monotonic() - began
                    left = f"{duration(spent / flops * (all_flops - flops))} left" if waiting else duration(spent)
                    where = f"{len(trials) - len(waiting)}/{len(trials)} {named(trial)}"
                    try:
                        result = future.result()
                    except subprocess.CalledProcessError as error:
                        failed += 1
                        console.print(f"{where}: [red]failed[/red]; {left}\n", highlight=False)
                        console.print(error.stderr.strip(), markup=False, highlight=False)
                        continue
                    about = {name: getattr(trial, name) for name in ABOUT}
                    append_result(path, about | {"jobs": jobs} | result)
                    took, bound = duration(result["seconds"]), result["nats_per_byte"]
                    console.print(f"{where}: {bound:.4f} nats/byte in {took}; {left}", highlight=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
    return failed


def named(trial: Trial) -> str:
    """Describe a trial for people."""
    return f"{trial.corpus}, {REGIMES[trial.regime].title}, seed {trial.seed}"
