import math

import numpy as np
import pytest
from attrs import evolve

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.phases.learning_rate import learning_rate_factor, rate_points

TRAINING = TrainingConfig(warmup=0.1, decay=0.3, final_lr=0.2)


def course(schedule: str, **changes) -> list[float]:
    training = evolve(TRAINING, lr_schedule=schedule, **changes)
    return [learning_rate_factor(step, 100, training) for step in range(100)]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
def test_warm_up_rises_linearly_to_the_peak(schedule):
    """The first step already moves, and the peak is reached when the warm-up ends."""
    assert course(schedule)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(course(schedule)) == 1.0


def test_wsd_holds_and_then_decays():
    """Between warm-up and decay the rate stands still."""
    rates = course("wsd")
    assert rates[10:70] == [1.0] * 60
    assert rates[84] == pytest.approx(0.2 + 0.8 * 0.5)
    assert rates[-1] == pytest.approx(0.2)


def test_cosine_and_linear_decay_from_the_warm_up_on():
    """Half-way through, both stand at the mean of the peak and the end."""
    for schedule in ("cosine", "linear"):
        rates = course(schedule)
        assert rates[54] == pytest.approx(0.6)
        assert rates[-1] == pytest.approx(0.2)
    assert course("cosine")[20] > course("linear")[20]
    assert course("cosine")[32] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 23 / 90)) / 2)


def test_constant_stays_at_the_peak():
    """After the warm-up nothing changes."""
    assert course("constant")[10:] == [1.0] * 90


def test_no_warm_up_starts_at_the_peak():
    """A share of 0 leaves the warm-up out."""
    assert course("constant", warmup=0.0) == [1.0] * 100


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
@pytest.mark.parametrize(("first", "steps"), [(0, 100), (0, 30), (30, 1), (31, 69), (5, 8)])
def test_a_few_points_draw_the_course(schedule, first, steps):
    """Lines between them are the rate at every step, of a whole schedule or of a phase's part of it."""
    training = evolve(TRAINING, lr_schedule=schedule)
    points = rate_points(first, steps, 100, training)
    assert len(points) <= 40
    drawn = np.interp(range(steps), *zip(*points, strict=True))
    expected = [learning_rate_factor(first + step, 100, training) for step in range(steps)]
    assert drawn == pytest.approx(expected, abs=4e-3 if schedule == "cosine" else 1e-9)
