import random
from array import array

import pytest

from stackwise_core.run_files.curves import MOST_POINTS, Curve


def curve(values) -> Curve:
    return Curve(array("d", range(1, len(values) + 1)), array("d", values))


def test_a_short_curve_keeps_every_point():
    """Nothing is thinned that can be drawn."""
    short = curve(range(MOST_POINTS))
    assert short.thinned() is short


@pytest.mark.parametrize("length", [MOST_POINTS + 1, 54_321, 200_000])
def test_a_long_curve_keeps_its_extremes_and_its_ends(length):
    """A single spike among all points is still there, at its own step; so is every value that was kept."""
    rng = random.Random(length)
    values = [rng.random() for _ in range(length)]
    high, low = rng.randrange(1, length - 1), rng.randrange(1, length - 1)
    values[high], values[low] = 7.0, -7.0
    thinned = curve(values).thinned()
    assert MOST_POINTS / 2 < len(thinned) <= MOST_POINTS
    points = dict(thinned.points())
    assert (points[high + 1], points[low + 1]) == (7.0, -7.0)
    assert {1.0, float(length)} <= set(points)
    assert list(thinned.steps) == sorted(thinned.steps)
    assert all(values[int(step) - 1] == value for step, value in points.items())


def test_every_stretch_keeps_its_own_extremes():
    """A wave that is faster than the plot is drawn as wide as it is, all along."""
    thinned = curve([(-1.0) ** step * (1 + step / 1e6) for step in range(100_000)]).thinned()
    assert sum(value > 0 for value in thinned.values) == pytest.approx(len(thinned) / 2, abs=2)


def test_smoothing_is_a_mean_over_a_tenth():
    """By hand, in the middle and at the ends; a straight line stays straight where it has as much on both sides."""
    values = [float(step) for step in range(100)]
    values[50] += 11
    smooth = curve(values).smoothed()
    assert smooth.values[50] == pytest.approx(50 + 1)
    assert smooth.values[44] == pytest.approx(44)
    assert smooth.values[45] == pytest.approx(45 + 1)
    assert smooth.values[0] == pytest.approx(0.5)
    assert smooth.values[3] == pytest.approx(3)
    assert list(smooth.steps) == list(curve(values).steps)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_few_points_are_smoothed_too(length):
    """A phase of one step has a curve."""
    smooth = curve([2.0] * length).smoothed()
    assert list(smooth.values) == pytest.approx([2.0] * length)


def test_a_curve_may_be_moved():
    """Phases stand side by side."""
    assert list(curve([5.0, 6.0]).moved(10).points()) == [(11.0, 5.0), (12.0, 6.0)]
