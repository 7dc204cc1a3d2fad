"""Children that are killed in the middle."""

import signal

import pytest

from stackwise_core.testing.child import killed


def count_to_three(tell):
    for number in (1, 2, 3):
        tell(number)
    signal.pause()


def test_the_last_number_that_it_told_counts():
    """It is killed though it would go on for ever, and nothing that it told is lost."""
    assert killed(count_to_three, 0.5) == 3


@pytest.mark.parametrize("work", [lambda tell: None, lambda tell: 1 / 0], ids=["done", "failed"])
def test_one_that_ends_by_itself_is_no_kill(work, capfd):
    """Else a test of kills could pass over a writer that fails at once."""
    with pytest.raises(AssertionError, match="by itself"):
        killed(work, 0.1)
