"""Values that the options refuse."""

import pytest

from stackwise_masking.options import ConstantOptions, RangeOptions


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_constant_refuses_what_masks_nothing(fraction):
    """A fraction of 0 would train on nothing, and one above 1 is none."""
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        ConstantOptions(fraction)


@pytest.mark.parametrize("low", [-0.1, 1.1, float("nan")])
def test_min_fraction_is_a_fraction(low):
    """It lies in [0, 1]."""
    with pytest.raises(ValueError, match="from 0"):
        RangeOptions(min_fraction=low)


def test_max_fraction_is_not_below_min_fraction():
    """The two are in order, and the message names the lower one."""
    with pytest.raises(ValueError, match=r"at least min_fraction = 0\.5"):
        RangeOptions(0.5, 0.4)
    assert RangeOptions(0.5, 0.5).max_fraction == 0.5


def test_max_fraction_masks_something():
    """A band of nothing but 0 is refused."""
    with pytest.raises(ValueError, match="above 0"):
        RangeOptions(0.0, 0.0)
