"""The budget record that trainer modes plan with."""

import itertools

import attrs
import pytest

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget


def test_the_record_is_what_is_configured():
    """Every key of the record that [training] has stands there with the configured value."""
    training = TrainingConfig(
        epochs_per_stack=3,
        steps_per_stack=7,
        masks="resampled",
        masks_per_sample=2,
        head="trains",
        noise_index="position",
    )
    budget, shared = training.budget, {"over", "over_is_set_by"}
    names = {field.name for field in attrs.fields(Budget)} - shared
    assert {name: getattr(budget, name) for name in names} == {name: getattr(training, name) for name in names}


@pytest.mark.parametrize(
    ("keys", "over", "said"),
    [
        ({}, "time", None),
        ({"over": "both"}, "both", r"training\.over"),
        ({"time": "depth"}, "depth", r"training\.time"),
    ],
)
def test_messages_name_the_key_that_was_set(keys, over, said):
    """Where ``time`` puts the schedule over depth, a refusal doesn't speak of ``over``."""
    budget = TrainingConfig(**keys).budget
    assert budget.over == over
    if said is None:
        budget.only_over_time("a finale")
    else:
        with pytest.raises(UsageError, match=f"{said} = .* a finale has no place"):
            budget.only_over_time("a finale")


@pytest.mark.parametrize("steps", [1, 5, 80, 1001])
def test_shares_that_follow_one_another_leave_no_step_out(steps):
    """Parts of a budget in steps begin where the one before ended, and add up to the whole."""
    budget, parts = Budget(steps_per_stack=steps), (1.3, 0.4, 0.9, 0.4)
    taken = [budget.share(part, sum(parts[:place])) for place, part in enumerate(parts)]
    assert taken[0]["begins"] == 0
    for before, after in itertools.pairwise(taken):
        assert before["begins"] + before["steps"] in (
            after["begins"],
            after["begins"] + 1,
        )  # a part has a step at least
    if steps >= 5:
        assert sum(part["steps"] for part in taken) == 3 * steps


def test_epochs_may_be_fractions():
    """A budget in epochs is divided exactly, and ``anew`` begins at the first draw again."""
    budget = Budget(epochs_per_stack=6)
    assert budget.share(0.5, 1.5) == {"epochs": 3.0, "begins": 9.0}
    assert budget.share(0.5, 1.5, anew=True) == {"epochs": 3.0, "begins": 0}


def test_a_place_on_the_schedule():
    """Over depth it is a point by the order of building, over both a slice, by position where that is asked for."""
    assert Budget(over="depth").stretch(2, 3, built=0) == (0.0, 0.0)
    assert Budget(over="depth", noise_index="position").stretch(2, 3, built=0) == (1.0, 1.0)
    assert Budget(over="depth").stretch(0, 1, built=0) == (0.0, 0.0)
    assert Budget(over="both").stretch(0, 4, built=1) == (0.25, 0.5)
    assert Budget().stretch(0, 4, built=1) == (0.0, 1.0)
