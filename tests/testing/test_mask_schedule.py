"""Each check of MaskScheduleContract refuses a schedule that is wrong in just that."""

import numpy as np
import pytest
import torch

from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.testing.mask_schedule import MaskScheduleContract


class Right(MaskSchedule):
    def fraction(self, progress):
        return 0.2 + 0.5 * progress**2


class TestRight(MaskScheduleContract):
    @pytest.fixture
    def schedule(self):
        return Right(None)


class TestFalling(MaskScheduleContract):
    """A schedule may fall as well as rise."""

    @pytest.fixture
    def schedule(self):
        return made(lambda progress: 1 - progress)


def made(fraction=None, place=None):
    """A schedule of these two functions."""
    members = {}
    if fraction is not None:
        members["fraction"] = lambda self, progress: fraction(progress)
    if place is not None:
        members["place"] = lambda self, *arguments: place(*arguments)
    return type("Made", (Right,), members)(None)


def overwriting(tokens, scorable, fraction, rng):
    tokens[:] = 0
    return rng.random(len(tokens)) < fraction


WRONG = {
    "above 1": ("test_fractions_are_between_0_and_1", made(lambda p: 1.2 * p)),
    "below 0": ("test_fractions_are_between_0_and_1", made(lambda p: p - 0.1)),
    "not a number": ("test_fractions_are_between_0_and_1", made(lambda p: p / p)),
    "a bump": ("test_fraction_is_monotone", made(lambda p: 4 * p * (1 - p))),
    "of the batch": ("test_fraction_is_elementwise", made(lambda p: p / p.max())),
    "flattened": ("test_shape_and_dtype_are_kept", made(lambda p: p.flatten())),
    "always fp32": ("test_shape_and_dtype_are_kept", made(lambda p: p.float())),
    "always fp64": ("test_shape_and_dtype_are_kept", made(lambda p: p.double())),
    "in place": ("test_progress_is_left_alone", made(lambda p: p.mul_(0.5))),
    "half the slope": ("test_gradient_is_the_slope", made(lambda p: 0.5 * p + 0.5 * p.detach())),
    "no slope": ("test_gradient_is_the_slope", made(lambda p: p.detach())),
    "integers": ("test_place_gives_a_mask", made(place=lambda t, s, f, r: (r.random(len(t)) < f).astype(int))),
    "too short": ("test_place_gives_a_mask", made(place=lambda t, s, f, r: r.random(len(t) - 1) < f)),
    "writes tokens": ("test_place_gives_a_mask", made(place=overwriting)),
    "global randomness": (
        "test_place_takes_randomness_from_its_generator_only",
        made(place=lambda t, s, f, r: np.random.rand(len(t)) < f),
    ),
    "no randomness": (
        "test_place_takes_randomness_from_its_generator_only",
        made(place=lambda t, s, f, r: np.arange(len(t)) < f * len(t)),
    ),
    "half as many": ("test_place_masks_the_fraction", made(place=lambda t, s, f, r: r.random(len(t)) < f / 2)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_schedules_are_refused(what, refuses):
    """Each wrong schedule fails the check that is about it."""
    check, schedule = WRONG[what]
    extra = {"dtype": torch.float64 if "32" in what else torch.float32} if "dtype" in check else {}
    refuses(MaskScheduleContract(), check, RuntimeError, schedule=schedule, **extra)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(MaskScheduleContract, {check for check, _ in WRONG.values()})
