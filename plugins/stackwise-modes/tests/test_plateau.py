"""Phases that end at a plateau."""

import pytest

from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.small import small_rack
from stackwise_modes.blockwise import Blockwise
from stackwise_modes.options import BlockwiseOptions, ProgressiveOptions
from stackwise_modes.progressive import Progressive

RACK, BUDGET = small_rack(1, 1, 1), Budget(steps_per_stack=80)


def test_all_but_the_last_pass_on_what_they_leave():
    """The last takes all of its steps, those included that others left to it."""
    phases = Blockwise(BlockwiseOptions(joins="plateau", least=0.5)).plan(RACK, BUDGET)
    assert [phase.ends for phase in phases] == ["passing_on", "passing_on", "late"]
    assert [phase.least for phase in phases] == [0.5, 0.5, 0.0]


def test_a_finale_is_the_last():
    """Stacks that join before it end at their plateaus."""
    phases = Progressive(ProgressiveOptions(joins="plateau", finale=0.2)).plan(RACK, BUDGET)
    assert [phase.ends for phase in phases] == ["passing_on"] * 3 + ["late"]


def test_by_default_phases_have_their_shares():
    """Early stopping stays what training.patience says."""
    assert {phase.ends for phase in Blockwise(BlockwiseOptions()).plan(RACK, BUDGET)} == {"early"}
    with pytest.raises(ValueError, match='without joins = "plateau"'):
        BlockwiseOptions(least=0.5)
