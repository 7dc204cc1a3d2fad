"""The phases and the routes of banded."""

import pytest

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.banded import Banded
from stackwise_modes.options import BandedOptions


def mode(**options):
    return Banded(BandedOptions(**options))


def plan(budget=None, **options):
    return mode(**options).plan(small_rack(1, 1), budget or Budget(epochs_per_stack=4))


def test_each_stack_stands_on_the_tokens():
    """A phase has one stack in its path, in cycles, and the stream of data goes on from cycle to cycle."""
    phases = plan(cycles=2)
    assert [(phase.path, sorted(phase.trains), phase.entry) for phase in phases] == [
        ((stack,), [stack], "tokens") for stack in [0, 1, 0, 1]
    ]
    assert [(phase.begins, phase.epochs) for phase in phases] == [(0, 2), (0, 2), (2, 2), (2, 2)]


def test_bands_of_equal_mass():
    """Stacks train on equal stretches of progress, and serve just these."""
    assert [phase.progress for phase in plan(cycles=1)] == [(0, 0.5), (0.5, 1)]
    routes = mode().routes(small_rack(1, 1))
    assert [(route.path, route.progress) for route in routes] == [((0,), (0, 0.5)), ((1,), (0.5, 1))]


def test_widening_is_for_training():
    """A widened band reaches into its neighbours, not beyond [0, 1], and routes stay as they are."""
    assert [phase.progress for phase in plan(cycles=1, widen=0.2)] == [(0, pytest.approx(0.6)), (pytest.approx(0.4), 1)]
    assert mode(widen=0.2).routes(small_rack(1, 1)) == mode().routes(small_rack(1, 1))


@pytest.mark.parametrize(
    ("shared", "expected", "ends"),
    [
        ("interleaved", [True, True, True, True], "shared"),
        ("after_first", [True, False, False, False], "shared"),
        ("per_stack", [True, True, True, True], "per_stack"),
    ],
)
def test_embedding_and_head(shared, expected, ends):
    """All phases train them, or the first one, or each stack has its own."""
    phases = plan(shared=shared, cycles=2)
    assert [phase.embedding for phase in phases] == [phase.head for phase in phases] == expected
    assert mode(shared=shared).partition(small_rack(1, 1)).ends == ends


def test_an_untied_head_goes_on():
    """``head = "trains"`` holds in each phase, also where the embedding is frozen after the first."""
    phases = plan(Budget(head="trains", epochs_per_stack=4), shared="after_first", cycles=1)
    assert [(phase.embedding, phase.head) for phase in phases] == [(True, True), (False, True)]


def test_cycles_need_a_step_a_phase():
    """More cycles than a stack has steps are refused."""
    with pytest.raises(UsageError, match="cycles = 3 leaves less than a step"):
        plan(Budget(steps_per_stack=2), cycles=3)


def test_over_time_only():
    """Bands are the mode's own."""
    with pytest.raises(UsageError, match=r'over = "both".*"banded"'):
        plan(Budget(over="both"))
