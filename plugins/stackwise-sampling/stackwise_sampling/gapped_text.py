"""A text with gaps: what is given stays as it is, what is missing is filled in token by token.

A prompt is a text with one gap at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import groupby

import numpy as np
from attrs import frozen

from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.errors import UsageError
from stackwise_sampling.given_parts import tokenise_parts

LONGEST_GAP = 10**6
"""Tokens."""

CONTEXT = 8
"""Tokens before a run that are decoded with it: with some tokenizers a token's text depends on what it follows."""

Part = str | int
"""Given text, or how many tokens are missing."""


class Kind(Enum):
    """Kind of a stretch of text."""

    GIVEN = "given"
    MASKED = "masked"
    FILLED = "filled"
    NEW = "new"
    """Filled by the step that was last."""


@frozen
class Stretch:
    """Neighbouring tokens of one kind."""

    text: str
    """Empty where they are masked."""
    kind: Kind
    tokens: int


@frozen(eq=False)
class GappedText:
    """Parts of a text, and its L tokens; each given part has tokens of its own."""

    parts: tuple[Part, ...]
    lengths: tuple[int, ...]
    """Lengths of the parts, in tokens."""
    ids: np.ndarray
    """int64 [L], the mask token where one is missing."""
    missing: np.ndarray
    """bool [L]"""
    tokenizer: Tokenizer

    @classmethod
    def of(cls, parts: Sequence[Part], tokenizer: Tokenizer) -> GappedText:
        """Tokenise each given part, as one of the text."""
        given = iter(tokenise_parts(parts, tokenizer))
        pieces = [
            next(given).astype(np.int64) if isinstance(part, str) else np.full(part, tokenizer.mask_id, np.int64)
            for part in parts
        ]
        lengths = tuple(map(len, pieces))
        missing = np.repeat([isinstance(part, int) for part in parts], lengths)
        return cls(tuple(parts), lengths, np.concatenate(pieces), missing, tokenizer)

    @classmethod
    def after(cls, prompt: str, length: int | None, tokenizer: Tokenizer, seq_len: int) -> GappedText:
        """Make a text of a prompt and ``length`` gaps. None: the rest of ``seq_len``, or half of it if that is more."""
        if length is None:
            length = max(seq_len - len(tokenizer.encode([prompt])[0][0]), (seq_len + 1) // 2)
        if length > LONGEST_GAP:
            raise UsageError(f"length: expected at most {LONGEST_GAP} tokens, found {length}.")
        return cls.of([prompt, length], tokenizer)

    def text(self, ids: np.ndarray) -> str:
        """Return the whole text, with the gaps filled from ids [L]. Given text stays the same, byte for byte."""
        return "".join(stretch.text for stretch in self.stretches(ids))

    def stretches(self, ids: np.ndarray, new: np.ndarray | None = None) -> Iterator[Stretch]:
        """Yield the stretches of the whole text in order, as filled so far.

        Args:
            ids: int64 [L], the mask token where one is still missing.
            new: int64, places that the last step filled.
        """
        masked = self.missing & (ids == self.tokenizer.mask_id)
        kinds = np.full(len(ids), Kind.FILLED)
        kinds[new if new is not None else []] = Kind.NEW
        kinds[masked] = Kind.MASKED
        begin, given = 0, ""
        for part, length in zip(self.parts, self.lengths, strict=True):
            if isinstance(part, str):
                yield Stretch(part, Kind.GIVEN, length)
                given = part
            else:
                for kind, run in groupby(range(begin, begin + length), key=kinds.__getitem__):
                    start, *others = run
                    stop = start + 1 + len(others)
                    text = "" if kind is Kind.MASKED else self._decoded(ids, start, stop, masked, given)
                    yield Stretch(text, kind, stop - start)
                    given = ""
            begin += length

    def _decoded(self, ids: np.ndarray, start: int, stop: int, masked: np.ndarray, given: str) -> str:
        """Decode the ids from ``start`` to ``stop`` in their context; ``given`` is the given text right before them."""
        first = max(0, start - CONTEXT)
        if masked[first:start].any():
            first += int(np.flatnonzero(masked[first:start])[-1]) + 1
        context, run = ids[first:start].tolist(), ids[start:stop].tolist()
        before = self.tokenizer.decode(context)
        text = self.tokenizer.decode_after(context, run) if start else self.tokenizer.decode(run)
        if given[-1:].isspace() and not before[-1:].isspace():
            text = text.removeprefix(" ")  # the tokenizer drops spaces and puts its own between words: one is there
        return text
