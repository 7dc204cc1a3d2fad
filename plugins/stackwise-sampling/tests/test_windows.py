"""Blocks and windows, by cases and by what must hold of all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise_core.errors import UsageError
from stackwise_sampling.windows import block_length, blocks


def gaps(text: str) -> np.ndarray:
    """``_`` is missing."""
    return np.array([each == "_" for each in text])


def stretches(text: str, seq_len: int, length: int, steps: int = 100):
    return [(each.start, each.stop, *each.window) for each in blocks(gaps(text), seq_len, length, steps)]


def test_what_is_seen_whole_is_one_window():
    """However it is cut, a text that fits is in view all the time."""
    assert stretches("ab____cd", 8, 8) == [(2, 8, 0, 8)]
    assert stretches("ab____cd", 8, 2) == [(2, 4, 0, 8), (4, 6, 0, 8)]


def test_a_text_that_is_written_on_has_what_comes_before_in_view():
    """The window ends with the block, once there is enough before it."""
    assert stretches("_" * 12, 8, 4) == [(0, 4, 0, 8), (4, 8, 0, 8), (8, 12, 4, 12)]
    assert stretches("a" * 20 + "_" * 4, 8, 4) == [(20, 24, 16, 24)]


def test_a_gap_within_a_text_has_both_sides_in_view():
    """Where text follows, as much is seen after the block as before it."""
    assert stretches("a" * 10 + "__" + "b" * 10, 8, 4) == [(10, 14, 8, 16)]
    assert stretches("_" + "b" * 10, 8, 1) == [(0, 1, 0, 8)]


def test_far_gaps_are_blocks_of_their_own():
    """A block spans no more than its length, and begins where a token is missing."""
    assert [each[:2] for each in stretches("_aaaa_aaaaaaaa__", 8, 6)] == [(0, 6), (14, 16)]


@given(
    missing=st.lists(st.booleans(), min_size=1, max_size=60).filter(any),
    seq_len=st.integers(1, 20),
    length=st.integers(1, 20),
    steps=st.integers(1, 90),
)
def test_every_gap_is_filled_once_in_view(missing, seq_len, length, steps):
    """Blocks have all gaps between them, lie in their windows, and share the steps by their tokens."""
    missing = np.array(missing)
    length = min(length, seq_len) if len(missing) > seq_len else length
    try:
        plan = blocks(missing, seq_len, length, steps)
    except UsageError:
        assert steps < missing.sum()
        return
    filled = np.zeros(len(missing), dtype=int)
    for block in plan:
        assert missing[block.start]
        assert block.stop - block.start <= length
        begin, end = block.window
        assert begin <= block.start < block.stop <= end <= len(missing)
        assert end - begin == min(seq_len, len(missing))
        filled[block.start : block.stop] += missing[block.start : block.stop]
    assert (filled == missing).all()
    tokens = [int(missing[block.start : block.stop].sum()) for block in plan]
    if steps <= missing.sum():
        assert sum(block.steps for block in plan) == steps
        assert all(1 <= block.steps <= of_block for block, of_block in zip(plan, tokens, strict=True))


def test_how_long_a_block_is():
    """All where all is seen at once, else half of what is; never more than that."""
    assert [block_length(tokens, 128, None) for tokens in (1, 128, 129, 10_000)] == [1, 128, 64, 64]
    assert block_length(300, 1, None) == 1
    assert block_length(300, 128, 128) == 128
    assert block_length(100, 128, 1000) == 1000
    with pytest.raises(UsageError, match="block 129: expected at most 128"):
        block_length(300, 128, 129)
