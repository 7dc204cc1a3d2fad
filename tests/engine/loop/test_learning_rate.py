import math

import pytest
from attrs import evolve

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.loop.learning_rate import learning_rate_factor

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
