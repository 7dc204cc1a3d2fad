"""The phases of end_to_end in both scopes, and what it refuses."""

import itertools

import pytest

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.testing.small import small_rack
from stackwise_modes.end_to_end import EndToEnd
from stackwise_modes.options import EndToEndOptions


def plan(budget, *options):
    return EndToEnd(EndToEndOptions(*options)).plan(small_rack(2, 2, 2), budget)


def test_everything_trains_at_once():
    """One phase over all stacks, as long as all of theirs together."""
    assert plan(Budget(epochs_per_stack=2, masks="resampled")) == [
        Phase(
            name="whole rack",
            path=[0, 1, 2],
            trains={0, 1, 2},
            embedding=True,
            head=True,
            masks="resampled",
            epochs=6,
        )
    ]


def test_the_budget_in_steps():
    """Steps a stack add up as epochs do."""
    (phase,) = plan(Budget(steps_per_stack=10))
    assert phase.steps == 30


def test_one_stack_at_a_time():
    """The whole rack is in each path, one stack trains, and the ends train with stack 0; the stream of data goes on."""
    phases = plan(Budget(epochs_per_stack=4), "stackwise", 2)
    assert [phase.path for phase in phases] == [(0, 1, 2)] * 6
    assert [sorted(phase.trains) for phase in phases] == [[0], [1], [2], [0], [1], [2]]
    assert [phase.embedding for phase in phases] == [phase.head for phase in phases] == [True, False, False] * 2
    assert [(phase.begins, phase.epochs) for phase in phases] == [(2 * place, 2) for place in range(6)]


def test_cycles_in_steps():
    """The steps of all stacks together are shared out evenly, at least one a phase."""
    phases = plan(Budget(steps_per_stack=8), "stackwise", 2)
    assert [(phase.begins, phase.steps) for phase in phases] == [(4 * place, 4) for place in range(6)]
    uneven = plan(Budget(steps_per_stack=10), "stackwise", 4)
    assert [phase.begins for phase in uneven] == list(itertools.accumulate([0, *(p.steps for p in uneven[:-1])]))
    assert sum(phase.steps for phase in uneven) == 30


def test_cycles_need_a_step_a_phase():
    """More cycles than the budget has steps for are refused, with both keys."""
    with pytest.raises(UsageError, match=r"cycles = 5 leaves less than a step.*steps_per_stack = 4"):
        plan(Budget(steps_per_stack=4), "stackwise", 5)


@pytest.mark.parametrize("over", ["depth", "both"])
def test_depth_needs_phases(over):
    """One phase has no depth for the schedule to run over: the message names the key and what to write."""
    with pytest.raises(UsageError, match=rf'training\.over = "{over}".*Use over = "time"'):
        plan(Budget(over=over))


def test_time_as_depth_is_over_depth():
    """``time = "depth"`` runs the schedule over depth, also where ``over`` was left out."""
    with pytest.raises(UsageError, match=r'training\.time = "depth".*Use time = "none"'):
        plan(TrainingConfig(time="depth").budget)
