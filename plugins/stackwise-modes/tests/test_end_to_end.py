"""The one phase of end_to_end, and what it refuses."""

import pytest

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.testing.small import small_rack
from stackwise_modes.end_to_end import EndToEnd
from stackwise_modes.options import EndToEndOptions


def plan(training, epochs=None):
    return EndToEnd(EndToEndOptions(epochs)).plan(small_rack(2, 2, 2), training)


def test_everything_trains_at_once():
    """One phase over all stacks, as long as all of theirs together."""
    assert plan(TrainingConfig(epochs_per_stack=2, masks="resampled")) == [
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


@pytest.mark.parametrize(
    ("training", "epochs", "expected"),
    [
        (TrainingConfig(epochs_per_stack=2), None, (6, None)),
        (TrainingConfig(epochs_per_stack=2), 4, (4, None)),
        (TrainingConfig(steps_per_stack=10), None, (3, 30)),
        (TrainingConfig(steps_per_stack=10), 4, (4, None)),
    ],
)
def test_the_budget(training, epochs, expected):
    """It is that of all stacks together, in epochs or in steps; the mode's own ``epochs`` wins over both."""
    (phase,) = plan(training, epochs)
    assert (phase.epochs, phase.steps) == expected


@pytest.mark.parametrize("over", ["depth", "both"])
def test_depth_needs_phases(over):
    """One phase has no depth for the schedule to run over: the message names the key and what to write."""
    with pytest.raises(UsageError, match=rf'training\.over = "{over}".*Use "time"'):
        plan(TrainingConfig(over=over))


def test_epochs_are_at_least_one():
    """An epoch count of 0 would train nothing."""
    with pytest.raises(ValueError, match="at least 1"):
        EndToEndOptions(0)
