"""Loss curves that a refactoring leaves alone. STACKWISE_UPDATE_GOLDEN=1 writes them anew."""

import json
import os
from pathlib import Path

import pytest

from tests.tiny import run_tiny

CURVES = Path(__file__).parent
RUNS = {
    "blockwise": {},
    "blockwise_over_depth": {"training.over": "depth"},
    "layerwise": {"trainer_mode": {"use": "layerwise"}, "rack.blocks_per_stack": 2, "rack.stacks": 2},
    "end_to_end": {"trainer_mode": {"use": "end_to_end"}, "training.masks": "resampled"},
    "end_to_end_stackwise": {"trainer_mode": {"use": "end_to_end", "scope": "stackwise", "cycles": 2}},
    "progressive_append": {
        "trainer_mode": {"use": "progressive", "start": "copy", "finale": 0.4, "finale_lr": 0.5},
        "training.lr_schedule": "cosine",
    },
    "progressive_prepend": {
        "trainer_mode": {"use": "progressive", "building": "prepend", "start": "zero_output"},
        "training.over": "both",
    },
    "fused_frozen": {"trainer_mode": {"use": "fused"}},
    "fused_trainable": {"trainer_mode": {"use": "fused", "fusion": "trainable"}},
    "banded": {"trainer_mode": {"use": "banded", "shared": "per_stack", "cycles": 2, "widen": 0.1}},
    "clm": {"objective": "clm", "rack.attention": "causal"},
    "mlm": {"objective": {"use": "mlm", "random": 0.1, "keep": 0.1}},
    "time_input": {
        "training.time": "input",
        "training.time_encoding": "learned",
        "training.time_steps": 4,
        "training.time_step_fractions": {0: 0.2, 3: 1.0},
    },
}


QUICK = {"blockwise", "banded", "clm", "mlm"}
"""The whole runs that ``make check`` takes."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_losses_are_as_they_were(tmp_path, name):
    """Every phase's losses and every depth's likelihood, in fp32, within what CPUs differ by."""
    ran = run_tiny(tmp_path, RUNS[name])
    curve = {
        "losses": [round(loss, 5) for loss in ran.losses],
        "nats_per_token": [round(likelihood.nats_per_token, 5) for likelihood in ran.result.likelihoods],
    }
    file = CURVES / f"{name}.json"
    if os.environ.get("STACKWISE_UPDATE_GOLDEN"):
        file.write_text(json.dumps(curve) + "\n")
    golden = json.loads(file.read_text())
    assert curve["losses"] == pytest.approx(golden["losses"], rel=2e-3)
    assert curve["nats_per_token"] == pytest.approx(golden["nats_per_token"], rel=2e-3)
