"""Ranges of number formats, compared with torch's own casts."""

import math

import pytest
import torch

from stackwise_core.engine.rack.number_range import FINITE, NumberRange, OutOfRange


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_held_stays_finite_and_the_next_power_of_two_does_not(dtype):
    """The largest number of a format survives torch's cast, and twice as much comes out infinite."""
    largest = torch.tensor([0.0, torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=torch.float64)
    assert NumberRange.of(dtype).holds(largest)
    assert largest.to(dtype).isfinite().all()
    assert not NumberRange.of(dtype).holds(2 * largest)
    assert not (2 * largest).to(dtype)[1:].isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_held_by_no_format(value):
    """Wherever it stands among other numbers."""
    for place in range(5):
        values = torch.ones(5)
        values[place] = value
        with pytest.raises(OutOfRange, match=rf"^a weight isn't finite: {value:g} at \[{place}\] \(1 of 5"):
            FINITE.check(values, "a weight")


def test_the_message_has_the_number_its_place_and_what_to_take():
    """The first of several is shown, with how many there are."""
    weight = torch.ones(4, 3)
    weight[1, 2], weight[3, 0] = 70000.0, -80000.0
    with pytest.raises(OutOfRange) as caught:
        NumberRange.of(torch.float16, "Take bf16.").check(weight, "up_proj.weight")
    assert str(caught.value) == (
        "up_proj.weight can't be held in fp16: 70000 at [1, 2] (2 of 12 numbers are beyond it); it holds numbers from "
        "-65504 to 65504. Take bf16."
    )


def test_nothing_is_held_by_every_format():
    """A tensor without a number has none that is too large."""
    FINITE.check(torch.empty(0, 3), "a weight")
