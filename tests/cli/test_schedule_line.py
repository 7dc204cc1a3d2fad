"""The planned learning rate as a line of bars."""

import pytest

from stackwise_core.cli.schedule_line import BARS, schedule_line
from tests.tiny import TinyRun

GROWING = {
    "trainer_mode": {"use": "progressive", "finale": 0.5},
    "rack.stacks": 2,
    "training.steps_per_stack": 40,
    "training.warmup": 0.1,
}


def parts(tmp_path, **changes):
    line = schedule_line(TinyRun.of(tmp_path, GROWING | changes).plan.phases)
    assert line.startswith("learning rate: ")
    bars, _, highest = line.removeprefix("learning rate: ").partition(" (at most ")
    return bars.split("\u2502"), highest.removesuffix(")")


def test_each_phase_has_its_own_course(tmp_path):
    """A stroke lies between phases, which are as long as their steps, and each rises and falls."""
    bars, highest = parts(tmp_path)
    assert [len(each) for each in bars] == [15, 15, 30]
    for each in bars:
        assert each[0] != BARS[-1]
        assert BARS[-1] in each
        assert each[-1] in BARS[:3]
    assert highest == "0.003"


def test_one_course_rises_and_falls_once(tmp_path):
    """All bars between warm-up and decay are full."""
    bars, _ = parts(tmp_path, **{"training.course": "run"})
    assert bars[0][-5:] == bars[1][:5] == 5 * BARS[-1]
    assert bars[1] == 15 * BARS[-1]
    assert bars[2][-1] in BARS[:3]


def test_many_phases_are_one_line(tmp_path):
    """Without strokes, which would be longer than the bars."""
    bars, _ = parts(tmp_path, **{"trainer_mode": {"use": "banded", "cycles": 10}, "training.steps_per_stack": 60})
    assert [len(each) for each in bars] == [60]


@pytest.mark.parametrize("rate", [0.0])
def test_no_rate_is_no_line(tmp_path, rate):
    """A run that trains nothing has none."""
    plan = TinyRun.of(tmp_path, GROWING | {"training.block_lr": rate}).plan
    assert schedule_line(plan.phases) == "learning rate: 0"
