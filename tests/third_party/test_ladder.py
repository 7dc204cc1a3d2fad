"""A trainer mode from elsewhere, whose stacks have mask fractions of their own."""

import pytest

from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.small import small_rack
from stackwise_core.testing.trainer_mode import TrainerModeContract
from tests.tiny import run_tiny

pytestmark = pytest.mark.usefixtures("packages")


def ladder():
    from stackwise_ladder.ladder import Ladder
    from stackwise_ladder.options import LadderOptions

    return Ladder(LadderOptions())


class TestPlugin(PluginContract):
    hooks = "stackwise_ladder.hooks"


class TestLadder(TrainerModeContract):
    @pytest.fixture
    def mode(self, packages):
        return ladder()


class TestLadderOverDepth(TrainerModeContract):
    @pytest.fixture
    def mode(self, packages):
        return ladder()

    @pytest.fixture
    def budget(self):
        return Budget(over="depth")


@pytest.mark.parametrize(
    ("over", "stretches"),
    [
        ("time", [(0.0, 1.0)] * 3),
        ("depth", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]),
        ("both", [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)]),
    ],
)
def test_each_stack_has_its_stretch_of_the_schedule(over, stretches):
    """Both times that it trains; the two climbs have the budget between them."""
    phases = ladder().plan(small_rack(1, 1, 1), Budget(over=over, epochs_per_stack=4))
    assert [phase.progress for phase in phases] == stretches * 2
    assert [phase.epochs for phase in phases] == [3.0] * 3 + [1.0] * 3
    assert [phase.begins for phase in phases] == [0, 3, 6, 9, 10, 11]


@pytest.mark.slow
def test_a_run_climbs_twice(tmp_path):
    """Each stack at one mask fraction of a schedule from 20 to 80 %, the lowest at the lightest."""
    ran = run_tiny(
        tmp_path,
        {
            "trainer_mode": {"use": "ladder"},
            "training.over": "depth",
            "training.steps_per_stack": 4,
            "mask_schedule": {"use": "linear", "min_fraction": 0.2, "max_fraction": 0.8},
            "evaluation": {"sequences": 4, "draws": 1},
        },
    )
    assert [(phase.name, phase.steps) for phase in ran.result.phases] == [
        *((f"stack {stack}", 3) for stack in range(3)),
        *((f"stack {stack} again", 1) for stack in range(3)),
    ]
    bands = [planned.band for planned in ran.plan.phases]
    assert [low for low, high in bands] == pytest.approx([0.2, 0.5, 0.8] * 2)
    assert all(low == high for low, high in bands)
