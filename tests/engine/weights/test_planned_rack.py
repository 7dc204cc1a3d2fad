"""The rack of a finished run, as its plan has it."""

import json
import shutil
from pathlib import Path

import pytest

from stackwise_core.config.source_run import read_source_run
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.planned_rack import PlannedRack
from stackwise_core.errors import StackwiseError
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of two stacks, each with an embedding of its own."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 4,
        "trainer_mode": {"use": "banded", "shared": "per_stack"},
        "mask_schedule": {"use": "linear", "min_fraction": 0.0, "max_fraction": 1.0},
        "evaluation": {"draws": 1, "sequences": 4},
    }
    return run_tiny(tmp_path_factory.mktemp("finished"), changes).directory


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """It, to be tampered with."""
    return shutil.copytree(finished, tmp_path / "theirs")


def test_a_rack_is_what_a_mode_and_a_schedule_had_made_of_it(run):
    """Blocks and ends are the plan's, the rest is the configuration's."""
    planned = PlannedRack.of(RunDirectory(run), read_source_run(run))
    rack = json.loads((run / "plan.json").read_text())["rack"]
    spec = FinishedRun.open(run).parts.spec
    assert planned.blocks == spec.blocks == tuple(rack["blocks"])
    for key in ("vocab_size", "seq_len", "d_model", "n_heads", "n_kv_heads", "d_ff", "ends", "time_encoding"):
        assert getattr(spec, key) == rack[key]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": [1] * 1000}, "hasn't written it"),
        ({"blocks": [10**12, 1]}, "stack 0 has fewer blocks"),
        ({"ends": "none"}, 'expected rack.ends to be "shared" or "per_stack", found the string "none"'),
        ({"time_fractions": [2.0]}, r"expected rack.time_fractions to be fractions of 0 to 1, found \[2.0\]"),
        ({"time_fractions": "all"}, "expected rack.time_fractions to be an array of numbers"),
    ],
)
def test_a_plan_that_no_run_wrote_is_refused_before_memory_is_taken(run, change, said):
    """A checksum proves nothing where it came with the file."""
    plan = json.loads((run / "plan.json").read_text())
    plan["rack"] |= change
    RunDirectory(run).write_json("plan.json", plan)
    with pytest.raises(StackwiseError, match=said):
        FinishedRun.open(run)
