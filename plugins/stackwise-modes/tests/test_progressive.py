"""The phases of progressive: where stacks join, how they begin, and the finale."""

import attrs
import pytest

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.options import ProgressiveOptions
from stackwise_modes.progressive import Progressive


def mode(**options):
    return Progressive(ProgressiveOptions(**options))


def plan(budget=None, rack=None, **options):
    rack = mode(**options).partition(rack or small_rack(1, 1, 1))
    return mode(**options).plan(rack, budget or Budget(epochs_per_stack=10))


def test_append():
    """Stacks join above, each alone in training; the first brings embedding and head."""
    phases = plan(start="copy")
    assert [(phase.path, sorted(phase.trains)) for phase in phases] == [((0,), [0]), ((0, 1), [1]), ((0, 1, 2), [2])]
    assert [phase.embedding for phase in phases] == [phase.head for phase in phases] == [True, False, False]
    assert [phase.start for phase in phases] == ["random", "copy", "copy"]
    assert [phase.entry for phase in phases] == ["tokens", "boundary above stack 0", "boundary above stack 1"]


def test_prepend():
    """Stacks join below, and train through the frozen ones above: every phase starts at the tokens."""
    phases = plan(building="prepend")
    assert [(phase.path, sorted(phase.trains)) for phase in phases] == [((2,), [2]), ((1, 2), [1]), ((0, 1, 2), [0])]
    assert [phase.entry for phase in phases] == ["tokens"] * 3
    assert [phase.exit_norm for phase in phases] == [2, None, None]


@pytest.mark.parametrize(
    ("building", "noise_index", "expected"),
    [
        ("append", "build", [0, 0.5, 1]),
        ("prepend", "build", [0, 0.5, 1]),
        ("append", "position", [0, 0.5, 1]),
        ("prepend", "position", [1, 0.5, 0]),
    ],
)
def test_the_schedule_over_depth(building, noise_index, expected):
    """What is built first has the schedule's beginning, or what stands at the tokens."""
    budget = Budget(over="depth", noise_index=noise_index)
    assert [phase.progress for phase in plan(budget, building=building)] == [(at, at) for at in expected]


def test_a_rackwise_finale():
    """It has its share of the whole budget, goes on in the stream of data, and trains everything."""
    *building, finale = plan(finale=0.4, finale_lr=0.5)
    assert [(phase.begins, phase.epochs) for phase in building] == [(0, 6)] * 3
    assert (finale.begins, finale.epochs, finale.lr) == (pytest.approx(18), pytest.approx(12), 0.5)
    assert (finale.trains, finale.embedding, finale.head) == ({0, 1, 2}, True, True)


def test_a_stackwise_finale():
    """It trains one stack at a time with the whole rack in the path, in cycles."""
    phases = plan(finale=0.4, finale_scope="stackwise", cycles=2)[3:]
    assert [(phase.path, sorted(phase.trains)) for phase in phases] == [((0, 1, 2), [stack]) for stack in [0, 1, 2] * 2]
    assert [phase.epochs for phase in phases] == pytest.approx([2] * 6)
    assert [phase.begins for phase in phases] == pytest.approx([18, 20, 22, 24, 26, 28])


def test_a_finale_needs_the_schedule_over_time():
    """A joint phase has no depth."""
    with pytest.raises(UsageError, match=r'training\.over = "depth".*a finale'):
        plan(Budget(over="depth"), finale=0.2)


@pytest.mark.parametrize(("building", "blocks"), [("append", (2, 2, 2, 2)), ("prepend", (2, 2, 2, 2))])
def test_it_grows_beyond_the_configured_rack(building, blocks):
    """``target_stacks`` adds stacks of the size of the first, and each has its phase."""
    rack = mode(building=building, target_stacks=4).partition(small_rack(2, 2))
    assert rack.blocks == blocks
    assert len(plan(rack=small_rack(2, 2), building=building, target_stacks=4)) == 4


def test_a_target_below_the_rack():
    """Fewer stacks than there are is no growth."""
    with pytest.raises(UsageError, match=r"target_stacks = 2 is less than rack\.stacks = 3"):
        mode(target_stacks=2).partition(small_rack(1, 1, 1))


def test_growth_from_another_run():
    """Below what ``rack.init_from`` brings stacks are prepended; above it they are appended."""
    for building, given, paths in (
        ("append", {0, 1}, [(0, 1, 2), (0, 1, 2, 3)]),
        ("prepend", {2, 3}, [(1, 2, 3), (0, 1, 2, 3)]),
    ):
        rack = attrs.evolve(small_rack(1, 1, 1, 1), given=frozenset(given))
        phases = mode(building=building).plan(rack, Budget())
        assert [phase.path for phase in phases] == paths
        assert not any(phase.embedding or phase.head for phase in phases)


@pytest.mark.parametrize(("building", "adapts"), [("append", [[], [0], [0, 1]]), ("prepend", [[], [2], [1, 2]])])
def test_the_trunk_adapts(building, adapts):
    """``trunk = "adapters"`` names the stacks whose adapters train along, and changes nothing else."""
    phases = plan(trunk="adapters", building=building)
    assert [sorted(phase.adapts) for phase in phases] == adapts
    assert [attrs.evolve(phase, adapts=()) for phase in phases] == plan(building=building)


def test_what_is_given_adapts_too():
    """Stacks of ``rack.init_from`` are of the trunk from the first phase on."""
    rack = attrs.evolve(small_rack(1, 1, 1), given=frozenset({0, 1}))
    (phase,) = mode(trunk="adapters").plan(rack, Budget())
    assert (phase.trains, phase.adapts) == ({2}, {0, 1})


@pytest.mark.parametrize("scope", ["rackwise", "stackwise"])
def test_a_finale_over_a_trunk_that_adapts_is_one_of_adapters(scope):
    """In either scope, with the budget and the learning rate that a finale of weights has; the ends stay frozen."""
    options = {"finale": 0.4, "finale_scope": scope, "finale_lr": 0.5}
    phases, of_weights = plan(trunk="adapters", **options)[3:], plan(**options)[3:]
    assert [phase.adapts for phase in phases] == [phase.trains for phase in of_weights]
    assert not any(phase.trains or phase.embedding or phase.head for phase in phases)
    costs = [[(phase.begins, phase.epochs, phase.lr) for phase in each] for each in (phases, of_weights)]
    assert costs[0] == costs[1]
