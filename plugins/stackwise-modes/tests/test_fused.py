"""The phases of fused over a frozen and over a trainable trunk."""

import attrs
import pytest

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.fused import Fused
from stackwise_modes.options import FusedOptions


def plan(budget, **options):
    return Fused(FusedOptions(**options)).plan(small_rack(1, 1, 1), budget)


def test_a_frozen_trunk_is_live():
    """Masks are fresh whatever [training] says, and boundaries are held by window, never cached."""
    phases = plan(Budget(epochs_per_stack=2, masks="fixed"))
    assert [sorted(phase.trains) for phase in phases] == [[0], [1], [2]]
    assert {(phase.masks, phase.boundaries) for phase in phases} == {("resampled", "window")}
    assert [phase.begins for phase in phases] == [0, 2, 4]


def test_a_trainable_trunk():
    """Stacks 0..k all train, with embedding and head, so that there is no boundary."""
    phases = plan(Budget(epochs_per_stack=2), fusion="trainable")
    assert [sorted(phase.trains) for phase in phases] == [[0], [0, 1], [0, 1, 2]]
    assert all(phase.embedding and phase.head and phase.entry == "tokens" for phase in phases)
    assert [(phase.begins, phase.epochs) for phase in phases] == [(0, 2), (2, 2), (4, 2)]


def test_a_trainable_trunk_may_be_restored():
    """``restore`` says whether a quantised trunk comes back from its masters; it has no meaning for a frozen one."""
    restored = plan(Budget(), fusion="trainable", restore=True)
    assert [phase.restores for phase in restored] == [True, True, True]
    adapting = plan(Budget(), fusion="trainable")
    assert [phase.restores for phase in adapting] == [False, False, False]
    assert [attrs.evolve(phase, restores=True) for phase in adapting] == restored
    with pytest.raises(ValueError, match='expected false with fusion = "frozen"'):
        FusedOptions(restore=True)


def test_the_schedule_over_depth():
    """A frozen trunk leaves one stack a phase, which has a place; a trainable one doesn't."""
    assert [phase.progress for phase in plan(Budget(over="depth"))] == [(0, 0), (0.5, 0.5), (1, 1)]
    with pytest.raises(UsageError, match=r'over = "depth".*fusion = "trainable"'):
        plan(Budget(over="depth"), fusion="trainable")
