"""Contract that every mask schedule must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stackwise_core.interfaces.mask_schedule import MaskSchedule


class MaskScheduleContract:
    """Contract of a mask schedule: subclass it and provide the fixture ``schedule``."""

    @pytest.fixture
    def schedule(self) -> MaskSchedule:
        """Return the schedule to test."""
        raise NotImplementedError("the subclass provides the fixture `schedule`")

    def test_fractions_are_between_0_and_1(self, schedule: MaskSchedule) -> None:
        """Every progress has a fraction in [0, 1]."""
        for dtype in (torch.float32, torch.float64):
            fraction = schedule.fraction(torch.linspace(0, 1, 1001, dtype=dtype))
            assert bool(((fraction >= 0) & (fraction <= 1)).all())

    def test_fraction_is_monotone(self, schedule: MaskSchedule) -> None:
        """The fraction never turns round: the band of a stretch of progress is what its two ends say."""
        steps = schedule.fraction(torch.linspace(0, 1, 1001, dtype=torch.float64)).diff()
        assert bool((steps >= -1e-12).all()) or bool((steps <= 1e-12).all())

    def test_fraction_is_elementwise(self, schedule: MaskSchedule) -> None:
        """A progress has the same fraction alone as among others."""
        progress = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alone = torch.stack([schedule.fraction(one) for one in progress])
        torch.testing.assert_close(schedule.fraction(progress), alone, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_are_kept(self, schedule: MaskSchedule, dtype: torch.dtype) -> None:
        """A tensor of any shape gives one of that shape and dtype."""
        for shape in ((), (1,), (7,), (2, 3), (2, 3, 4), (0,)):
            fraction = schedule.fraction(torch.full(shape, 0.3, dtype=dtype))
            assert (tuple(fraction.shape), fraction.dtype) == (shape, dtype)

    def test_progress_is_left_alone(self, schedule: MaskSchedule) -> None:
        """The caller's tensor isn't written to."""
        progress = torch.linspace(0, 1, 11)
        before = progress.clone()
        schedule.fraction(progress)
        assert torch.equal(progress, before)

    def test_gradient_is_the_slope(self, schedule: MaskSchedule) -> None:
        """Autograd's derivative, from which the loss weight is made, equals central differences."""
        # Off any round number, where a schedule made of pieces may have its corners.
        progress = torch.linspace(0.0123, 0.9871, 37, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(schedule.fraction(progress).sum(), progress)
        with torch.no_grad():
            step = 1e-6
            differences = (schedule.fraction(progress + step) - schedule.fraction(progress - step)) / (2 * step)
        torch.testing.assert_close(slope, differences, rtol=1e-5, atol=1e-7)

    def test_place_gives_a_mask(self, schedule: MaskSchedule) -> None:
        """A mask is one bool a token, and the tokens are left alone."""
        tokens = np.arange(30, dtype=np.int32)
        mask = schedule.place(tokens, np.ones(30, dtype=bool), 0.5, np.random.default_rng(0))
        assert (mask.shape, mask.dtype) == ((30,), np.dtype(bool))
        assert (tokens == np.arange(30)).all()

    def test_place_takes_randomness_from_its_generator_only(self, schedule: MaskSchedule) -> None:
        """Equal generators give equal masks, whatever was drawn elsewhere; others give other masks."""
        tokens, scorable = np.arange(200, dtype=np.int32), np.ones(200, dtype=bool)
        np.random.seed(1)
        torch.manual_seed(1)
        first = schedule.place(tokens, scorable, 0.5, np.random.default_rng(1))
        np.random.seed(2)
        torch.manual_seed(2)
        again = schedule.place(tokens, scorable, 0.5, np.random.default_rng(1))
        other = schedule.place(tokens, scorable, 0.5, np.random.default_rng(3))
        assert (first == again).all()
        assert (first != other).any()

    def test_place_masks_the_fraction(self, schedule: MaskSchedule) -> None:
        """The average share of masked tokens is the requested fraction."""
        tokens, scorable, rng = np.arange(512, dtype=np.int32), np.ones(512, dtype=bool), np.random.default_rng(4)
        for fraction in (0.15, 0.5, 0.9):
            shares = [schedule.place(tokens, scorable, fraction, rng).mean() for _ in range(100)]
            assert np.mean(shares) == pytest.approx(fraction, abs=0.05)
