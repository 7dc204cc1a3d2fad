"""Division of the budget among stacks."""

import pytest

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.blockwise import Blockwise
from stackwise_modes.fused import Fused
from stackwise_modes.options import BlockwiseOptions, FusedOptions, ProgressiveOptions
from stackwise_modes.progressive import Progressive

RACK, BUDGET = small_rack(1, 1, 1), Budget(steps_per_stack=80)
SHARES = (3.0, 2.0, 1.0)


def test_shares_keep_the_whole_budget():
    """Stacks get their part of what all would have had together, in the order in which they are built."""
    (phases, downwards) = (
        Blockwise(BlockwiseOptions(shares=SHARES)).plan(RACK, BUDGET),
        Progressive(ProgressiveOptions(building="prepend", shares=SHARES)).plan(RACK, BUDGET),
    )
    assert [phase.steps for phase in phases] == [120, 80, 40]
    assert [(phase.path[0], phase.steps) for phase in downwards] == [(2, 120), (1, 80), (0, 40)]


def test_the_total_stays():
    """However a budget is cut, its steps add up to what all stacks have."""
    budget = Budget(steps_per_stack=5)
    options = ProgressiveOptions(shares=SHARES, finale=0.3)
    assert sum(phase.steps for phase in Progressive(options).plan(RACK, budget)) == 15
    assert sum(phase.steps for phase in Blockwise(BlockwiseOptions(shares=(1.0, 1.0, 2.0))).plan(RACK, budget)) == 15


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"finale_lr": 0.5}, "expected 1.0 without a finale"),
        ({"finale_lr": -1.0, "finale": 0.2}, "at least 0"),
        ({"finale_scope": "stackwise"}, "expected 'rackwise' without a finale"),
        ({"cycles": 2, "finale": 0.2}, 'finale_scope "stackwise"'),
        ({"cycles": 0, "finale": 0.2}, "at least 1"),
    ],
)
def test_a_finale_s_options_need_one(options, expected):
    """What would have no effect is refused."""
    with pytest.raises(ValueError, match=expected):
        ProgressiveOptions(**options)


def test_fresh_masks_go_on_from_phase_to_phase():
    """Where phases share no draws, each begins where the one before it ended."""
    for fusion in ("frozen", "trainable"):
        phases = Fused(FusedOptions(fusion, shares=SHARES)).plan(RACK, BUDGET)
        assert [(phase.begins, phase.steps) for phase in phases] == [(0, 120), (120, 80), (200, 40)]


def test_a_finale_takes_its_share_first():
    """What the finale leaves is shared out."""
    *building, finale = Progressive(ProgressiveOptions(shares=SHARES, finale=0.5)).plan(RACK, BUDGET)
    assert [phase.steps for phase in building] == [60, 40, 20]
    assert (finale.begins, finale.steps) == (120, 120)


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0, 1.0, 1.0)])
def test_every_stack_has_a_share(shares):
    """More or fewer shares than stacks are a mistake."""
    with pytest.raises(UsageError, match=rf"shares has {len(shares)} entries, and 3 stacks are built"):
        Blockwise(BlockwiseOptions(shares=shares)).plan(RACK, BUDGET)


def test_shares_are_above_zero():
    """A stack that never trains isn't built, and no share can be out of all proportion."""
    for shares in ((1.0, 0.0), (1e308, 1e308)):
        with pytest.raises(ValueError, match="above 0"):
            BlockwiseOptions(shares=shares)
