"""The phases of hierarchical fusion."""

import pytest
from attrs import evolve

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.fused import Fused
from stackwise_modes.options import FusedOptions


def plan(stacks, budget=None, given=(), **options):
    rack = evolve(small_rack(*[1] * stacks), given=frozenset(given))
    return Fused(FusedOptions("hierarchical", **options)).plan(rack, budget or Budget(steps_per_stack=32))


def test_groups_double_from_level_to_level():
    """Each trains jointly on the frozen ones below it; what stands at the tokens trains embedding and head."""
    phases = plan(4, start="copy")
    assert [(phase.path, sorted(phase.trains)) for phase in phases] == [
        ((0,), [0]),
        ((0, 1), [1]),
        ((0, 1, 2), [2]),
        ((0, 1, 2, 3), [3]),
        ((0, 1), [0, 1]),
        ((0, 1, 2, 3), [2, 3]),
        ((0, 1, 2, 3), [0, 1, 2, 3]),
    ]
    assert [phase.embedding for phase in phases] == [True, False, False, False, True, False, True]
    assert [phase.frozen_prefix for phase in phases][5] == (0, 1)
    assert phases[5].name == "groups of 2, stacks 2-3"


def test_levels_share_the_budget():
    """A group has its part of its level's, and a level's phases begin at one place, after those of the level before."""
    phases = plan(4, shares=(1.0, 1.0, 2.0))
    assert [phase.steps for phase in phases] == [8, 8, 8, 8, 16, 16, 64]
    assert [phase.begins for phase in phases] == [0, 0, 0, 0, 8, 8, 24]
    with pytest.raises(UsageError, match="shares has 2 entries, and 3 levels of stacks train"):
        plan(4, shares=(1.0, 1.0))


def test_what_a_number_of_stacks_leaves_over_is_a_group():
    """Five stacks have two pairs and one alone."""
    assert [sorted(phase.trains) for phase in plan(5)][5:] == [[0, 1], [2, 3], [4], [0, 1, 2, 3], [4], [0, 1, 2, 3, 4]]


def test_a_source_s_stacks_are_built_already():
    """They are in the groups all the same."""
    phases = plan(4, given={0, 1})
    assert [sorted(phase.trains) for phase in phases] == [[2], [3], [0, 1], [2, 3], [0, 1, 2, 3]]


def test_one_stack_has_one_level():
    """There is nothing to fuse."""
    assert [phase.name for phase in plan(1)] == ["stack 0"]


def test_it_needs_the_schedule_over_time():
    """A group has no depth of its own."""
    with pytest.raises(UsageError, match='fusion = "hierarchical"'):
        plan(2, Budget(over="depth"))
