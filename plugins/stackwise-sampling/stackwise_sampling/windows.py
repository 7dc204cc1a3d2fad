"""Blocks of a text, filled one after another, and the window that the network sees for each."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from stackwise_core.errors import UsageError


@frozen
class Block:
    """Consecutive tokens of the text whose gaps are filled together, before those of the next block."""

    start: int
    stop: int
    window: tuple[int, int]
    """First token that the network sees, and the one after the last."""
    steps: int


def block_length(tokens: int, seq_len: int, asked: int | None) -> int:
    """Return the largest number of tokens in a block.

    Raises:
        UsageError: more than the rack sees at a time.
    """
    if asked is None:
        return tokens if tokens <= seq_len else max(1, seq_len // 2)
    if tokens > seq_len and asked > seq_len:
        raise UsageError(
            f"block {asked}: expected at most {seq_len}, since the whole has {tokens} tokens and the rack sees "
            f"{seq_len} at a time."
        )
    return asked


def blocks(missing: np.ndarray, seq_len: int, length: int, steps: int) -> list[Block]:
    """Return the blocks of a text, from left to right.

    Args:
        missing: bool [L].
        length: how many tokens a block spans at most; it begins at the first one that is missing.
        steps: of all blocks together; each has one, and of the others its share by its tokens.

    Raises:
        UsageError: there are fewer steps than blocks.
    """
    places, spans = np.flatnonzero(missing), []
    at = 0
    while at < len(places):
        start = int(places[at])
        stop = min(start + length, len(missing))
        after = int(np.searchsorted(places, stop))
        spans.append((start, stop, after - at))
        at = after
    if steps < len(spans):
        raise UsageError(f"steps {steps}: expected at least {len(spans)}, one for each block of {length} tokens.")
    result, given, weighed = [], 0, 0
    weights = max(1, len(places) - len(spans))
    for start, stop, tokens in spans:
        weighed += tokens - 1
        share = (steps - len(spans)) * weighed // weights - given
        given += share
        result.append(Block(start, stop, _window(missing, start, stop, seq_len), 1 + share))
    return result


def _window(missing: np.ndarray, start: int, stop: int, seq_len: int) -> tuple[int, int]:
    """Return the window around a block: centred where text follows it, else all of it before the block."""
    tokens, room = len(missing), seq_len - (stop - start)
    if tokens <= seq_len:
        return 0, tokens
    followed = not missing[stop : stop + room // 2].all()
    begin = start - (room - room // 2 if followed else room)
    begin = min(max(0, begin), tokens - seq_len)
    return begin, begin + seq_len
