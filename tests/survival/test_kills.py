"""Runs that are killed at any moment, and go on: their weights are, to the bit, those of a run that wasn't."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stackwise_core.engine.runs.directory import RunDirectory
from tests.killing import STOPPED
from tests.run_bits import bits, measured
from tests.survival.killed_run import MOMENTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LORA = {"use": "lora", "rank": 2, "dropout": 0.1}
COMMON = {
    "checkpoint.steps": 1,
    "training.steps_per_stack": 8,
    "training.window": 32,
    "evaluation": {"draws": 1, "sequences": 4},
    "cache_backend": {"use": "disk", "shard_entries": 6},
}
RUNS: dict[str, dict[str, Any]] = {
    "blockwise, nf4 below, stack LoRA": {
        "changes": {
            "trainer_mode": {"use": "blockwise"},
            "precision": {"active": "bf16", "trunk": "nf4"},
            "adapter": {"stack": LORA},
        },
        "kills": {"step": 2, "checkpoint": 4, "cache write": 6, "quantising": 2, "phase change": 2},
    },
    "blockwise, boundaries kept": {
        "changes": {
            "trainer_mode": {"use": "blockwise"},
            "precision": {"active": "fp32", "trunk": "nf4"},
            "adapter": {"stack": LORA},
            "training.steps_per_stack": 5,
            "cache_backend": {"use": "disk", "keep": "rack", "keep_time_steps": 3},
        },
        "kills": {"step": 2, "cache write": 3, "phase change": 1},
    },
    "progressive, QLoRA on int8": {
        "changes": {
            "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.3},
            "precision": {"active": "fp32", "trunk": "int8"},
            "adapter": {"stack": LORA, "trunk": LORA},
        },
        "kills": {"step": 2, "checkpoint": 4, "quantising": 2, "phase change": 2},
    },
    "fused over nf4, resampled masks": {
        "changes": {
            "trainer_mode": {"use": "fused", "fusion": "frozen"},
            "precision": {"active": "fp32", "trunk": "nf4"},
            "training.masks": "resampled",
            "optimizer": {"use": "adamw_8bit"},
        },
        "kills": {"step": 2, "checkpoint": 3, "quantising": 1, "phase change": 1},
    },
    "end to end, streamed": {
        "changes": {
            "trainer_mode": {"use": "end_to_end"},
            "training.residency": "stream",
            "training.offload": "disk",
            "training.steps_per_stack": 3,
        },
        "kills": {"streamed step": 5, "streamed update": 6, "checkpoint": 5, "phase change": 1},
    },
    "grown, streamed, one course": {
        "changes": {
            "trainer_mode": {"use": "progressive", "start": "copy", "finale": 0.4},
            "training.residency": "stream",
            "training.offload": "disk",
            "training.course": "run",
            "training.steps_per_stack": 5,
            "rack.stacks": 2,
        },
        "kills": {"streamed update": 4, "checkpoint": 4, "phase change": 3},
    },
    "all join at a plateau, streamed, clipped by stack": {
        "changes": {
            "trainer_mode": {
                "use": "progressive",
                "trunk": "trains",
                "growth": "all",
                "start": "copy",
                "joins": "plateau",
            },
            "training.residency": "stream",
            "training.offload": "disk",
            "training.course": "run",
            "training.clip": "stack",
            "training.patience": 1,
            "training.embedding_lr": 10.0,
            "training.steps_per_stack": 4,
            "evaluation": {"every": 1, "draws": 1, "sequences": 4},
        },
        "kills": {"streamed step": 8, "checkpoint": 6, "phase change": 2},
    },
    "banded, own ends": {
        "changes": {
            "trainer_mode": {"use": "banded", "shared": "per_stack", "cycles": 2},
            "rack.tie_embeddings": False,
        },
        "kills": {"step": 2, "checkpoint": 4, "phase change": 3},
    },
}
"""Runs, and how often each is killed in which kind of moment."""


def survived(directory: Path) -> dict[str, Any]:
    """The outcomes of the killed runs, by name."""
    requests = {
        name: {
            "directory": str(directory / str(seed)),
            "changes": COMMON | each["changes"],
            "kills": each["kills"],
            "seed": seed,
        }
        for seed, (name, each) in enumerate(RUNS.items())
    }
    command = [sys.executable, "-m", "tests.survival.killed_run", json.dumps(requests)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def test_runs_that_are_killed_again_and_again_end_with_the_same_bits(tmp_path):
    """Whatever they were doing; weights, adapters, frozen stacks, losses and measurements are an undisturbed run's.

    One test, since two workers would kill them twice.
    """
    came_to = survived(tmp_path)
    for run in came_to.values():
        *ended, last = run["lives"]
        assert last["status"] == 0
        assert {life["status"] for life in ended} <= {-signal.SIGKILL, STOPPED, 0}
        undisturbed = Path(run["undisturbed"])
        for directory in map(Path, run["killed"]):
            assert bits(directory) == bits(undisturbed)
            assert measured(directory) == measured(undisturbed)
            run_directory = RunDirectory(directory)
            assert not any(run_directory.manifest.problem(name) for name in run_directory.manifest)
            assert not run_directory.checkpoints()
    reached = {name: [life for life in run["lives"] if life["reached"]] for name, run in came_to.items()}
    check_kinds([life for lives in reached.values() for life in lives])
    streamed = [life for name, lives in reached.items() if "streamed" in name for life in lives]
    assert sum(life["status"] == -signal.SIGKILL for life in streamed) >= 30
    plateau = came_to["all join at a plateau, streamed, clipped by stack"]["undisturbed"]
    assert json.loads((Path(plateau) / "progress.json").read_text())["phases"][0]["passed_on"] > 0


def check_kinds(lives: list[dict[str, Any]]) -> None:
    """At least 30 by SIGKILL, and some in every kind of moment; SIGTERM at random instants beside them."""
    killed = Counter(life["moment"] for life in lives if life["status"] == -signal.SIGKILL)
    assert killed.total() >= 40
    assert set(killed) == set(MOMENTS)
    stopped = [life for life in lives if life["way"] == "terminate"]
    assert len(stopped) >= 5
    assert {life["status"] for life in stopped} <= {STOPPED, 0}
    assert [life["status"] for life in stopped].count(STOPPED) >= 3
