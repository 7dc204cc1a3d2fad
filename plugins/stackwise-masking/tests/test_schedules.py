"""The schedules' values, worked out by hand."""

import pytest
import torch

from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Cosine, Exponential, Linear

SHAPED = [Linear, Exponential, Cosine]


def fractions(schedule, *progress):
    return schedule.fraction(torch.tensor(progress, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("schedule", SHAPED)
def test_ends_are_min_and_max(schedule):
    """At progress 0 the fraction is min_fraction, at 1 max_fraction; by default 15 % and 90 %."""
    assert fractions(schedule(RangeOptions()), 0, 1) == pytest.approx([0.15, 0.90], abs=1e-15)
    assert fractions(schedule(RangeOptions(0.0, 1.0)), 0, 1) == pytest.approx([0.0, 1.0], abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 0.15 + 0.75 g, with g = p; (e^p - 1)/1.718281828...; (1 - cos pi p)/2, cosines 1/sqrt 2, 0, -1/sqrt 2
        (Linear, [0.3375, 0.525, 0.7125]),
        (Exponential, [0.2739721325, 0.4331555015, 0.6375509934]),
        (Cosine, [0.2598349571, 0.525, 0.7901650429]),
    ],
)
def test_values_between(schedule, expected):
    """At a quarter, a half and three quarters the fractions are the formulas'."""
    assert fractions(schedule(RangeOptions()), 0.25, 0.5, 0.75) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # (f1 - f0) g': 1; e^p/(e - 1) = 0.5819767, 0.9595174, 1.5819767; pi/2 sin pi p = 0, pi/2, 0
        (Linear, [0.75, 0.75, 0.75]),
        (Exponential, [0.4364825, 0.7196381, 1.1864825]),
        (Cosine, [0.0, 1.1780972, 0.0]),
    ],
)
def test_slopes(schedule, expected):
    """The slope at both ends and in the middle is the derivative of the formula."""
    progress = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule(RangeOptions()).fraction(progress).sum(), progress)
    assert slope.tolist() == pytest.approx(expected, abs=1e-6)


def test_constant_is_constant():
    """Every progress has the one fraction, by default a half, and the slope is 0."""
    progress = torch.linspace(0, 1, 5, requires_grad=True)
    fraction = Constant(ConstantOptions()).fraction(progress)
    assert fraction.tolist() == [0.5] * 5
    assert torch.autograd.grad(fraction.sum(), progress)[0].tolist() == [0.0] * 5
