"""The given parts of a text with gaps, tokenised as parts of it: only its beginning is treated as that of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, product

import numpy as np

from stackwise_core.engine.tokenizer.tokenizer import Ids, Joined, Tokenizer

NEIGHBOURS = (".", "\n", "a", "x", "0")
"""Neighbours tried in a gap beside a part. Some tokenizers treat the ends of a text differently."""


def tokenise_parts(parts: Sequence[str | int], tokenizer: Tokenizer) -> list[Ids]:
    """Return the ids of each given part, in order.

    They are cut out of the tokenisation of all given text together. Where a token would reach beyond a part, that part
    is tokenised beside something else that one of its tokens ends at.

    Args:
        parts: given text, or how many tokens are missing.
        tokenizer: the rack's.
    """
    given = [part for part in parts if isinstance(part, str)]
    together = "".join(given)
    bounds = [0, *accumulate(map(len, given))]
    whole = tokenizer.encode_joined([together])
    is_placed = _is_placed(whole, tokenizer)
    found = []
    for number, part in enumerate(given):
        first, stop = bounds[number : number + 2]
        begins_text = not number and isinstance(parts[0], str)
        ids = _of_part(whole, together[:first], part) if is_placed and (first or begins_text) else None
        if ids is None:
            befores = ("",) if begins_text else (*together[:first][-1:], *NEIGHBOURS, "")
            afters = (*together[stop:][:1], *NEIGHBOURS, "") if is_placed and stop < len(together) else ("",)
            ids = _beside(part, befores, afters, tokenizer)
        found.append(ids)
    return found


def _beside(part: str, befores: Iterable[str], afters: Iterable[str], tokenizer: Tokenizer) -> Ids:
    """Return the ids of a part beside the first neighbours that share no token with it; at last these are none."""
    placed = [before for before in befores if _is_placed(tokenizer.encode_joined([before]), tokenizer)]
    for before, after in product(placed, afters):
        ids = _of_part(tokenizer.encode_joined([before + part + after]), before, part)
        if ids is not None:
            return ids
    raise AssertionError("a part by itself shares no token")


def _is_placed(text: Joined, tokenizer: Tokenizer) -> bool:
    """Return whether the tokens' places are known. After a character that a model drops, the library misplaces them."""
    return bool(tokenizer.unknown_ids) or bool(text.widths.sum() == text.sizes.sum())


def _of_part(text: Joined, before: str, part: str) -> Ids | None:
    """Return the ids of a part that follows another in a text; None where a token crosses one of its ends."""
    begin = len(before.encode())
    end = begin + len(part.encode())
    for bound in (begin, end):
        if ((text.starts < bound) & (text.ends > bound)).any():
            return None
    first, stop = np.searchsorted(text.starts, [begin, end])
    return text.ids[first:stop]
