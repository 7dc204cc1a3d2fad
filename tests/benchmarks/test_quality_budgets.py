"""Budget matching of the quality benchmark."""

import pytest

from stackwise_core.engine.phases.setup import set_up
from tests.benchmarks.quality.budgets import matching_steps, nearest, plan_with, total
from tests.tiny import tiny_config


@pytest.mark.parametrize(("target", "expected"), [(0, 1), (3, 1), (4.4, 1), (4.6, 2), (12, 4), (1000, 333)])
def test_the_nearest_number_of_steps_is_found(target, expected):
    """On either side of the target, from 1 up."""
    assert nearest(lambda steps: 3.0 * steps, target) == expected


def test_on_a_stair_the_first_of_equal_numbers_is_taken():
    """A quantity that stays the same for a while, as FLOPs of whole windows may, is no trouble."""
    assert nearest(lambda steps: 10 * (steps // 10), 29) == 30


@pytest.mark.parametrize("budget", ["tokens", "flops"])
def test_a_mode_is_given_what_the_baseline_costs(tmp_path, budget):
    """No other number of steps a stack comes nearer to the baseline's tokens, or FLOPs."""
    baseline = set_up(*tiny_config(tmp_path, {"trainer_mode": {"use": "end_to_end"}}))
    target = total(plan_with(baseline, 20), budget)
    setup = set_up(*tiny_config(tmp_path, {"trainer_mode": {"use": "blockwise"}}))
    steps = matching_steps(setup, budget, target)
    distance = {n: abs(total(plan_with(setup, n), budget) - target) for n in (steps - 1, steps, steps + 1)}
    assert min(distance, key=lambda n: distance[n]) == steps
    assert distance[steps] < 0.05 * target
