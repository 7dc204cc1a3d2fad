"""The phases of blockwise and layerwise, exactly."""

import attrs
import pytest

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.testing.small import small_rack
from stackwise_modes.blockwise import Blockwise, Layerwise
from stackwise_modes.options import BlockwiseOptions

BLOCKWISE = Blockwise(BlockwiseOptions())


def test_three_stacks():
    """Each stack trains above the frozen ones; embedding and head train with the first only."""
    budget = Budget(epochs_per_stack=3, masks_per_sample=2)
    shared = {"masks": "fixed", "masks_per_sample": 2, "epochs": 3}
    assert BLOCKWISE.plan(small_rack(2, 2, 2), budget) == [
        Phase(name="stack 0", path=[0], trains={0}, embedding=True, head=True, **shared),
        Phase(name="stack 1", path=[0, 1], trains={1}, **shared),
        Phase(name="stack 2", path=[0, 1, 2], trains={2}, **shared),
    ]


def test_entries():
    """The first phase starts at the tokens, each later one at the boundary of all stacks below."""
    phases = BLOCKWISE.plan(small_rack(1, 1, 1), Budget())
    assert [phase.entry for phase in phases] == ["tokens", "boundary above stack 0", "boundary above stack 1"]
    assert [phase.frozen_prefix for phase in phases] == [(), (0,), (0, 1)]


def test_one_stack():
    """A rack of one stack is one phase in which everything trains."""
    (phase,) = BLOCKWISE.plan(small_rack(4), Budget())
    assert (phase.path, phase.trains, phase.embedding, phase.head) == ((0,), {0}, True, True)


@pytest.mark.parametrize(
    ("over", "stacks", "expected"),
    [
        ("time", 3, [(0, 1), (0, 1), (0, 1)]),
        ("depth", 3, [(0, 0), (0.5, 0.5), (1, 1)]),
        ("both", 4, [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]),
        ("time", 1, [(0, 1)]),
        ("depth", 1, [(0, 0)]),
        ("both", 1, [(0, 1)]),
    ],
)
def test_the_stretch_of_progress(over, stacks, expected):
    """Over time a stack has all of it, over depth its place, over both its slice."""
    phases = BLOCKWISE.plan(small_rack(*[1] * stacks), Budget(over=over))
    assert [phase.progress for phase in phases] == expected


def test_the_head_goes_on():
    """``head = "trains"`` lets the head train in each phase, the embedding still in the first only."""
    rack = attrs.evolve(small_rack(1, 1), tie_embeddings=False)
    phases = BLOCKWISE.plan(rack, Budget(head="trains"))
    assert [(phase.embedding, phase.head) for phase in phases] == [(True, True), (False, True)]


def test_budget_and_masks_are_passed_on():
    """Steps, epochs and masks stand in every phase as [training] has them."""
    budget = Budget(epochs_per_stack=5, steps_per_stack=7, masks="resampled", masks_per_sample=3)
    for phase in BLOCKWISE.plan(small_rack(1, 1), budget):
        assert (phase.steps, phase.masks, phase.masks_per_sample) == (7, "resampled", 3)


def test_blockwise_keeps_the_stacks():
    """The rack stays as configured."""
    assert BLOCKWISE.partition(small_rack(3, 1, 2)).blocks == (3, 1, 2)


def test_layerwise_cuts_into_blocks():
    """Each block is a stack of its own, and has a phase of its own."""
    layerwise = Layerwise(BlockwiseOptions())
    rack = layerwise.partition(small_rack(3, 1, 2))
    assert rack.blocks == (1,) * 6
    phases = layerwise.plan(rack, Budget())
    assert [sorted(phase.trains) for phase in phases] == [[0], [1], [2], [3], [4], [5]]


def test_a_start_is_for_stacks_that_join_others():
    """The first stack has no neighbour, and begins with random weights in any case."""
    phases = Blockwise(BlockwiseOptions("copy")).plan(small_rack(1, 1, 1), Budget())
    assert [phase.start for phase in phases] == ["random", "copy", "copy"]


def test_only_new_stacks_are_built():
    """Stacks, embedding and head that ``rack.init_from`` brings stay as they are."""
    rack = attrs.evolve(small_rack(1, 1, 1, 1), given=frozenset({0, 1}))
    phases = BLOCKWISE.plan(rack, Budget())
    assert [(phase.path, phase.trains, phase.embedding, phase.head) for phase in phases] == [
        ((0, 1, 2), {2}, False, False),
        ((0, 1, 2, 3), {3}, False, False),
    ]


def test_nothing_to_build():
    """A rack that is there in full has nothing to build: the message says what to raise, and what else there is."""
    rack = attrs.evolve(small_rack(1, 1), given=frozenset({0, 1}))
    with pytest.raises(UsageError, match=r'brings all 2.*Raise rack\.stacks.*"end_to_end"'):
        BLOCKWISE.plan(rack, Budget())
