import itertools

import numpy as np
import pytest
import torch
from attrs import frozen

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.noise import Noise, interpolated, nelbo_weights
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_masking.options import RangeOptions
from stackwise_masking.schedules import Cosine, Linear
from tests.joint import Joint


@frozen
class NoOptions:
    pass


class Falling(MaskSchedule):
    """From everything to nothing."""

    def fraction(self, progress):
        return 1 - progress


def linear(low: float = 0.0, high: float = 1.0) -> Linear:
    return Linear(RangeOptions(min_fraction=low, max_fraction=high))


def in_steps(count: int, schedule: MaskSchedule | None = None, fractions=()) -> Noise:
    return Noise.of(schedule or linear(), TrainingConfig(time_steps=count, time_step_fractions=fractions))


def middles(count: int, stretch=(0.0, 1.0)) -> torch.Tensor:
    """The middles of equal parts of a stretch of progress, float64."""
    low, high = stretch
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_linear_weight_is_one_over_t():
    """On (0, 1] the linear schedule has MDLM's weight."""
    t = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    assert torch.allclose(nelbo_weights(linear(), t, (0.0, 1.0)), 1 / t)


def test_weight_of_a_falling_schedule_is_positive():
    """The slope's sign is the direction of time, which a bound doesn't know."""
    t = torch.tensor([0.25], dtype=torch.float64)
    assert nelbo_weights(Falling(NoOptions()), t, (0.0, 1.0)).item() == pytest.approx(1 / 0.75)


def test_weight_is_finite_where_nothing_is_masked():
    """At fraction 0 there is no masked token to weigh."""
    assert nelbo_weights(linear(), torch.zeros(1, dtype=torch.float64), (0.0, 1.0)).item() == 0.0


def test_without_steps_it_is_the_schedule():
    """Where time is continuous, fraction, weight and band are the schedule's own."""
    noise, progress = Noise.of(linear(0.15, 0.9), TrainingConfig()), middles(5)
    assert torch.equal(noise.fraction(progress), 0.15 + progress * 0.75)
    assert torch.equal(noise.weights(progress, (0.2, 0.6)), nelbo_weights(noise.schedule, progress, (0.2, 0.6)))
    assert noise.band((0.0, 1.0)) == pytest.approx((0.15, 0.9))


# Discrete time, against the bound of D3PM on a distribution whose every conditional is known.

JOINT = Joint(length=4, vocabulary=3, seed=2)


def conditionals(x, masked) -> np.ndarray:
    """p(x_i = v | x outside of masked) for i in masked, [|masked|, V]."""
    seen = JOINT.table[tuple(slice(None) if i in masked else x[i] for i in range(JOINT.length))]
    seen = seen / seen.sum()
    axes = range(len(masked))
    return np.array([seen.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes])


def d3pm(x, fractions: list[float]) -> float:
    """The bound of absorbing D3PM for x in nats, one Kullback-Leibler divergence a time step, by enumeration.

    Args:
        fractions: mask fractions f_(-1) = 0, f_0, ... up to 1, where the divergence from the prior is nil.
    """
    total = 0.0
    for before, after in itertools.pairwise(fractions):
        opens = (after - before) / after  # chance that a masked token of this step isn't masked in the one before
        for masked in JOINT.subsets():
            chance = after ** len(masked) * (1 - after) ** (JOINT.length - len(masked))
            for i, predicted in zip(masked, conditionals(x, masked), strict=True):
                truth = np.zeros(JOINT.vocabulary + 1)
                truth[[x[i], -1]] = opens, 1 - opens
                model = np.append(opens * predicted, 1 - opens)
                held = truth > 0
                total += chance * (truth[held] * np.log(truth[held] / model[held])).sum()
    return total


def expected_bound(x, noise: Noise, stretch=(0.0, 1.0), parts: int | None = None) -> float:
    """The bound for x in nats as fraction and weights give it, averaged over progress and masks without sampling."""
    progress = middles(parts or len(noise.steps), stretch)
    total = 0.0
    pairs = zip(noise.fraction(progress).tolist(), noise.weights(progress, stretch).tolist(), strict=True)
    for fraction, weight in pairs:
        for masked in JOINT.subsets():
            chance = fraction ** len(masked) * (1 - fraction) ** (JOINT.length - len(masked))
            total += weight * chance * JOINT.cross_entropies(x, masked).sum() / len(progress)
    return total


@pytest.mark.parametrize(
    "noise", [in_steps(3), in_steps(5, Cosine(RangeOptions(0.0, 1.0))), in_steps(4, None, {1: 0.3, 3: 1.0})]
)
def test_the_bound_of_discrete_time_is_that_of_d3pm(noise):
    """Weighted cross entropies add up to the divergences of each step, written out."""
    for x in itertools.islice(JOINT.sequences(), 0, None, 20):
        assert expected_bound(x, noise) == pytest.approx(d3pm(x, [0.0, *noise.steps]), abs=1e-9)


def test_the_bound_of_discrete_time_falls_to_the_continuous_one():
    """Averaged over the distribution it is never below the exact bound, and the gap shrinks as 1/T."""
    # By count alone: the mean over x of the summed cross entropies at each mask is all that the bound depends on.
    summed = {
        masked: sum(JOINT.table[x] * JOINT.cross_entropies(x, masked).sum() for x in JOINT.sequences())
        for masked in JOINT.subsets()
    }
    exact = sum(JOINT.table[x] * JOINT.exact_nelbo(x) for x in JOINT.sequences())

    def gap(steps: int) -> float:
        noise, total = in_steps(steps), 0.0
        progress = middles(steps)
        fractions, weights = noise.fraction(progress).tolist(), noise.weights(progress, (0.0, 1.0)).tolist()
        for fraction, weight in zip(fractions, weights, strict=True):
            chances = {m: fraction ** len(m) * (1 - fraction) ** (JOINT.length - len(m)) for m in summed}
            total += weight * sum(chances[m] * summed[m] for m in summed) / steps
        return total - exact

    gaps = [gap(steps) for steps in (1, 4, 16, 64, 256)]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > gaps[4] > 0
    assert gaps[3] / gaps[4] == pytest.approx(4, rel=0.05)
    assert gaps[4] < 0.02 * gaps[0]


def test_slices_of_discrete_time_add_up():
    """Also where a slice ends within a step, as eight steps over three stacks do."""
    noise, x = in_steps(8), (0, 1, 2, 0)
    thirds = [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)]
    total = sum(expected_bound(x, noise, stretch, parts=8) for stretch in thirds)
    assert total == pytest.approx(expected_bound(x, noise), abs=1e-9)


def test_steps_given_as_a_list_are_taken_as_they_are():
    """Three steps of 15, 50 and 90 % weigh 1, 0.35/0.5 and 0.4/0.9, three times over a stretch of 1."""
    noise = Noise.of(linear(), TrainingConfig(time_step_fractions=(0.15, 0.5, 0.9)))
    progress = torch.tensor([0.0, 0.3, 0.34, 0.6, 0.7, 1.0], dtype=torch.float64)
    assert noise.fraction(progress).tolist() == [0.15, 0.15, 0.5, 0.5, 0.9, 0.9]
    assert noise.weights(progress, (0.0, 1.0)).tolist() == pytest.approx([3, 3, 2.1, 2.1, 4 / 3, 4 / 3])
    assert noise.weights(progress, (0.0, 0.5)).tolist() == pytest.approx([1.5, 1.5, 1.05, 1.05, 2 / 3, 2 / 3])
    assert noise.band((0.0, 1.0)) == (0.0, 0.9)
    assert noise.band((1 / 3, 2 / 3)) == (0.15, 0.5)
    assert noise.band((0.4, 0.4)) == (0.5, 0.5)


def test_gaps_of_a_table_are_filled_linearly_and_its_ends_held():
    """Eight steps of which three are given."""
    expected = (0.2, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.9)
    assert interpolated({1: 0.2, 3: 0.6, 6: 0.9}, 8) == pytest.approx(expected)
    assert in_steps(8, None, {1: 0.2, 3: 0.6, 6: 0.9}).steps == pytest.approx(expected)
    assert interpolated({2: 0.5}, 4) == (0.5,) * 4


def test_steps_of_a_schedule_are_its_fractions_at_their_ends():
    """Four steps from 20 to 100 %, the first of which reaches down to 20 %."""
    noise = in_steps(4, linear(0.2, 1.0))
    assert noise.steps == pytest.approx((0.4, 0.6, 0.8, 1.0))
    assert noise.band((0.0, 1.0)) == pytest.approx((0.2, 1.0))
    assert noise.weights(middles(4), (0.0, 1.0)).tolist() == pytest.approx([2, 4 / 3, 1, 0.8])


def test_a_step_that_masks_nothing_weighs_nothing():
    """Two steps of one fraction are one, and the empty mask has no tokens to weigh."""
    noise = Noise(linear(), (0.0, 0.5, 0.5, 1.0))
    assert noise.weights(middles(4), (0.0, 1.0)).tolist() == [0.0, 4.0, 0.0, 2.0]


def test_steps_of_a_falling_schedule_fall():
    """Cut into steps, progress 0 is still the heaviest noise, and the bound is that of the rising schedule."""
    falling, rising = in_steps(4, Falling(NoOptions())), in_steps(4)
    assert falling.fraction(middles(4)).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert falling.fraction(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [1.0, 0.25]
    assert falling.weights(middles(4), (0.0, 1.0)).tolist() == rising.weights(middles(4), (0.0, 1.0)).tolist()[::-1]
    assert falling.band((0.0, 1.0)) == (1.0, 0.0)
    assert falling.band((0.0, 0.5)) == (1.0, 0.5)
    assert sorted(falling.steps) == list(falling.steps)
