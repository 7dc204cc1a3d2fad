"""Budget matching of the quality benchmark."""

import pytest

from stackwise_core.engine.phases.setup import set_up
from tests.benchmarks.quality.budgets import flops_of, matching_steps, nearest, plan_with
from tests.benchmarks.quality.regimes import STREAMED
from tests.tiny import tiny_config


@pytest.mark.parametrize(("target", "expected"), [(0, 1), (3, 1), (4.4, 1), (4.6, 2), (12, 4), (1000, 333)])
def test_the_nearest_number_of_steps_is_found(target, expected):
    """On either side of the target, from 1 up."""
    assert nearest(lambda steps: 3.0 * steps, target) == expected


def test_on_a_stair_the_first_of_equal_numbers_is_taken():
    """A quantity that stays the same for a while, as FLOPs of whole windows may, is no trouble."""
    assert nearest(lambda steps: 10 * (steps // 10), 29) == 30


def test_a_mode_is_given_what_the_baseline_costs(tmp_path):
    """No other number of steps a stack comes nearer to the baseline's FLOPs."""
    baseline = set_up(*tiny_config(tmp_path, {"trainer_mode": {"use": "end_to_end"}}))
    target = flops_of(plan_with(baseline, 20))
    setup = set_up(*tiny_config(tmp_path, {"trainer_mode": {"use": "blockwise"}}))
    steps = matching_steps(setup, target)
    distance = {n: abs(flops_of(plan_with(setup, n)) - target) for n in (steps - 1, steps, steps + 1)}
    assert min(distance, key=lambda n: distance[n]) == steps
    assert distance[steps] < 0.05 * target


def test_a_streamed_regime_pays_for_its_second_forward_pass(tmp_path):
    """It gets fewer steps for the same FLOPs, by nearly a quarter, though it may run in memory."""
    joint = {"trainer_mode": {"use": "end_to_end"}, "training.steps_per_stack": 20}
    resident = set_up(*tiny_config(tmp_path, joint))
    streamed = set_up(*tiny_config(tmp_path, joint | STREAMED))
    target = flops_of(plan_with(resident, 20))
    assert matching_steps(resident, target) == 20
    assert 14 <= matching_steps(streamed, target) <= 17
