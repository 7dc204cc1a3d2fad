"""A run of ``few_steps`` in a process of its own, for benchmarks: seconds of each step, bytes moved, peaks, the plan's.

What happens between steps, such as dropping files from the page cache, isn't in a step's time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).with_name("few_steps.py")


def timed_steps(config: str, directory: Path, *, cold: bool = False, threads: int | None = None) -> dict[str, Any]:
    """Run a configuration that uses ``few_steps``, and return what was measured.

    Args:
        config: the TOML; ``run.directory`` and the plugin are set here.
        directory: for the run, which is left there.
        cold: whether the files of the training state leave the page cache after each step.
        threads: torch's; None: as many as there are cores.

    Returns:
        ``seconds`` and ``moved`` (bytes read and written by the offload) of each step, ``host_peak`` of the whole
        process, ``device_peak`` (None on a CPU), ``state`` (bytes of what trains: weights, gradients, moments),
        ``parameters``, ``tokens`` a step, ``planned`` (the phase in plan.json), the first and last ``losses``, the
        ``likelihood`` at the end, ``phase_peak``, and the ``device``'s name.
    """
    file = directory / "run.toml"
    file.write_text(config)
    command = [sys.executable, "-m", "tests.benchmarks.timed_steps", str(file), *(["--cold"] if cold else [])]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{file} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def drop_from_page_cache(folder: Path) -> None:
    """Write files out, and have the system forget what it holds of them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def main() -> None:
    import torch

    import stackwise_core as sw
    from stackwise_core.api import prepare
    from stackwise_core.engine.events.events import PhaseStarted, RunStarted, StepDone
    from stackwise_core.engine.offload.disk import Disk
    from stackwise_core.engine.offload.host_memory import HostMemory

    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    moved, seconds, by_step = [0], [], []
    began, directory = [0.0], [Path()]

    def counting(kind):
        read, write = kind.read, kind.write

        def counted_read(self, entry):
            tensors = read(self, entry)
            moved[0] += sum(tensor.nbytes for tensor in tensors.values())
            return tensors

        def counted_write(self, entry, tensors):
            moved[0] += sum(tensor.nbytes for tensor in tensors.values())
            write(self, entry, tensors)

        kind.read, kind.write = counted_read, counted_write

    for kind in (Disk, HostMemory):
        counting(kind)
    prepared = prepare(sw.load_config(options.file, overrides={"run.plugins": [str(PLUGIN)]}))
    device = prepared.setup.device

    def listen(event) -> None:
        if isinstance(event, RunStarted):
            directory[0] = event.directory
        elif isinstance(event, StepDone):
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began[0])
            by_step.append(moved[0])
            if options.cold:
                drop_from_page_cache(directory[0] / "offload")
        if isinstance(event, PhaseStarted | StepDone):
            moved[0] = 0
            began[0] = time.perf_counter()

    result = prepared.run(listen)
    (planned,) = prepared.plan.to_json()["phases"]
    (phase,) = result.phases
    print(
        json.dumps(
            {
                "seconds": seconds,
                "moved": by_step,
                "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "device_peak": phase.peak_bytes if device.type == "cuda" else None,
                "phase_peak": phase.peak_bytes,
                "state": (8 + prepared.setup.implementations.optimizer.state_bytes) * planned["trainable_parameters"],
                "parameters": prepared.setup.spec.parameters,
                "tokens": planned["tokens"] / planned["steps"],
                "planned": planned,
                "losses": [phase.first_loss, phase.last_loss],
                "likelihood": result.likelihoods[-1].nats_per_token,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            }
        )
    )


if __name__ == "__main__":
    main()
