"""Growth of a rack: how many stacks join at a time, where, and as copies of which."""

import pytest
from attrs import evolve

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.growth import joining_between, joining_in_order, sizes
from stackwise_modes.options import ProgressiveOptions
from stackwise_modes.progressive import Progressive


def plan(stacks=4, budget=None, given=(), **options):
    mode = Progressive(ProgressiveOptions(**options))
    return mode.plan(
        mode.partition(evolve(small_rack(*[1] * stacks), given=frozenset(given))), budget or Budget(steps_per_stack=10)
    )


def grown(phases):
    return [(phase.path, sorted(phase.trains)) for phase in phases]


@pytest.mark.parametrize(
    ("begin", "stacks", "growth", "expected"),
    [
        (1, 4, "one", [1, 2, 3, 4]),
        (1, 6, "double", [1, 2, 4, 6]),
        (3, 8, "double", [3, 6, 8]),
        (1, 8, "all", [1, 8]),
        (4, 4, "all", [4]),
    ],
)
def test_a_rack_grows_by_ones_by_doubling_or_at_once(begin, stacks, growth, expected):
    """The last phase has all stacks, whatever the number."""
    assert sizes(begin, stacks, growth) == expected


def test_stacks_join_on_top_or_below_in_the_order_of_building():
    """A source's stacks are there already."""
    assert joining_in_order([0, 1, 2, 3], 0, [1, 2, 4]) == [[0], [1], [2, 3]]
    assert joining_in_order([3, 2, 1, 0], 0, [2, 4]) == [[2, 3], [0, 1]]
    assert joining_in_order([2, 3, 4, 5], 2, [4, 6]) == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("stacks", "joined", "expected"),
    [
        (4, [1, 2, 4], [[0], [2], [1, 3]]),
        (6, [2, 6], [[0, 3], [1, 2, 4, 5]]),
        (5, [2, 4, 5], [[0, 2], [1, 3], [4]]),
    ],
)
def test_stacks_join_between_others(stacks, joined, expected):
    """Evenly, and what is there stays there; the bottom one is always among the first."""
    assert joining_between(stacks, joined) == expected


def test_depth_comes_once_and_late():
    """One stack trains alone, then all join as its copies and train together, on the samples that follow."""
    first, whole = plan(growth="all", trunk="trains", start="copy", shares=(3.0, 1.0))
    assert grown([first, whole]) == [((0,), [0]), ((0, 1, 2, 3), [0, 1, 2, 3])]
    assert (first.steps, whole.begins, whole.steps) == (30, 30, 10)
    assert (whole.start, whole.copies) == ("copy", ((1, 0), (2, 0), (3, 0)))
    assert whole.embedding
    assert whole.head
    assert [first.name, whole.name] == ["stack 0", "stacks 0-3"]


def test_doubling_on_top_repeats_what_is_there():
    """Copies are in the order of their originals, as in G_stack, and the top is a copy of the top."""
    phases = plan(growth="double", begin_with=2, stacks=5, trunk="trains", start="copy")
    assert [phase.path for phase in phases] == [(0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4)]
    assert [phase.copies for phase in phases] == [(), ((2, 0), (3, 1)), ()]


def test_doubling_between_copies_the_one_below():
    """Names say which stacks are in the path when not all of them follow one another."""
    phases = plan(growth="double", building="interleave", trunk="trains", start="copy")
    assert [phase.path for phase in phases] == [(0,), (0, 2), (0, 1, 2, 3)]
    assert [phase.copied(2) for phase in phases[1:2]] == [0]
    assert phases[2].copies == ((1, 0), (3, 2))
    assert [phase.name for phase in phases] == ["stack 0", "stacks 0, 2", "stacks 0-3"]


def test_several_join_a_frozen_trunk_below():
    """They train together, alone, and repeat the lowest that are there."""
    phases = plan(growth="double", building="prepend", start="copy")
    assert grown(phases) == [((3,), [3]), ((2, 3), [2]), ((0, 1, 2, 3), [0, 1])]
    assert phases[2].copies == ((0, 2), (1, 3))
    assert [phase.embedding for phase in phases] == [True, False, False]


def test_a_source_s_stacks_are_what_it_begins_with():
    """Then all others join at once, or as many as there are."""
    assert grown(plan(given={0}, growth="all")) == [((0, 1, 2, 3), [1, 2, 3])]
    assert grown(plan(given={0}, growth="double")) == [((0, 1), [1]), ((0, 1, 2, 3), [2, 3])]


def test_shares_are_of_phases():
    """All of them keep the budget that all stacks have together, less the finale's."""
    phases = plan(growth="double", shares=(1.0, 1.0, 2.0), finale=0.5)
    assert [phase.steps for phase in phases] == [5, 5, 10, 20]
    with pytest.raises(UsageError, match="shares has 4 entries, and 3 phases of growth are planned"):
        plan(growth="double", shares=(1.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"begin_with": 2, "given": {0}}, "begin_with = 2: rack.init_from brings the 1 stacks"),
        ({"begin_with": 5}, "begin_with = 5 is more than the 4 stacks"),
        ({"building": "interleave", "given": {0}}, 'building = "interleave": the stacks of rack.init_from'),
        ({"growth": "all", "budget": Budget(over="depth")}, "stacks that join together"),
        ({"trunk": "trains", "budget": Budget(over="depth")}, 'trunk = "trains"'),
    ],
)
def test_growth_that_has_no_meaning_is_refused(options, expected):
    """The message names the key."""
    with pytest.raises(UsageError, match=expected):
        plan(**options)
