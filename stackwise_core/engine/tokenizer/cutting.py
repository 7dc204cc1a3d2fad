"""Long texts, tokenised in windows that overlap, with the ids that each has as a whole.

A tokenizer treats a text's ends in ways of its own: a mark before the first word, spaces that are stripped, a word that
is cut. So neighbouring windows share some text on both sides of the seam between them, and each one's tokens count only
where those of both are the same.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from attrs import evolve, frozen

from stackwise_core.engine.tokenizer.tokenizer import Joined

PIECE = 1 << 17  # characters; a longer text is tokenised in windows, so that memory doesn't grow with it
OVERLAP = 1024
"""Characters that a window has of the text on either side of it."""
SHIFTS = 16
"""Number of places that are tried as the beginning of a window, until it gives the same tokens as the one before it."""

MOST_JOINED = 32
"""Pieces that are tokenised as one where there is no other way to the tokens of the whole."""

Encode = Callable[[str], Joined]

_log = logging.getLogger(__name__)


@frozen
class Window:
    """A piece of a text, with some of the text around it."""

    text: str
    before: int = 0
    """Number of characters that belong to the window before."""
    after: int = 0
    """Number of characters that belong to the window after."""

    @property
    def stands_alone(self) -> bool:
        """Whether no text of another window is in it."""
        return not self.before and not self.after

    @property
    def begin(self) -> int:
        """Offset at which its own text begins, in UTF-8 bytes."""
        return len(self.text[: self.before].encode())

    @property
    def end(self) -> int:
        """Offset at which its own text ends, in UTF-8 bytes."""
        return len(self.without_after().text.encode())

    def without_before(self) -> "Window":
        """Return it without the text of the window before."""
        return Window(self.text[self.before :], after=self.after)

    def without_after(self) -> "Window":
        """Return it without the text of the window after."""
        return Window(self.text[: len(self.text) - self.after], before=self.before)


@frozen
class Tokenised:
    """A window with its tokens, of which those from ``first`` on are its own."""

    window: Window
    tokens: Joined
    first: int = 0

    def own(self, stop: int | None = None) -> Joined:
        """Return its own tokens up to one, for its own text."""
        part = slice(self.first, stop)
        ids = self.tokens.ids[part]
        return Joined(
            ids=ids,
            widths=self.tokens.widths[part],
            counts=np.array([ids.size], np.int64),
            sizes=np.array([self.window.end - self.window.begin], np.int64),
            starts=self.tokens.starts[part],
            ends=self.tokens.ends[part],
        )


def cut(parts: Iterable[str], overlap: int) -> Iterator[Window]:
    """Yield the windows of a text, which depend on the text alone, and not on the parts that it comes in."""
    text, start, before = "", 0, 0
    for part in parts:
        text, start = text[start - before :] + part, before
        while len(text) - start > PIECE + overlap:
            end = _seam(text, start)
            yield Window(text[start - before : end + overlap], before, overlap)
            start, before = end, min(overlap, end)
    if len(text) > start:
        yield Window(text[start - before :], before)


# Where a text is cut: at the start of a line, or else before a space.
_SEAMS = (re.compile(r"\n(?=\S)"), re.compile(r"\S(?= )"))


def _seam(text: str, start: int) -> int:
    end = start + PIECE
    for seam in _SEAMS:
        cuts = [match.end() for match in seam.finditer(text, end - PIECE // 8, end)]
        if cuts:
            return cuts[-1]
    return end


def meet(left: Tokenised, right: Tokenised, encode: Encode) -> tuple[Joined | None, Tokenised]:
    """Find where a text passes from a window's tokens to the next one's.

    Where the tokens around the seam aren't the same in both, as in digits that are taken by threes, the right window is
    begun anew at or just before a token of the left one. Where this doesn't help either, as in a word that is longer
    than a window, both become one.

    Returns:
        The left window's own tokens, and the right one with its first own token; or None, and both windows as one.
    """
    found = _seam_token(left, right)
    if found is None:
        for window in _begun_anew(left, right.window):
            head = evolve(window, text=window.text[: window.before + left.window.after])
            if _seam_token(left, Tokenised(head, encode(head.text))) is not None:
                right = Tokenised(window, encode(window.text))
                found = _seam_token(left, right)
                break
    if found is not None:
        stop, first = found
        return left.own(stop), evolve(right, first=first)
    head, tail = left.window.without_after(), right.window.without_before()
    if len(head.text) + len(tail.text) <= MOST_JOINED * PIECE:
        both = Window(head.text + tail.text, head.before, tail.after)
        return None, Tokenised(both, encode(both.text), left.first)
    _log.warning(
        "A text is cut at a place where its tokens depend on more than the %d characters around it; some of them may "
        "be others than those of the whole.",
        MOST_JOINED * PIECE,
    )
    return Tokenised(head, encode(head.text), left.first).own(), Tokenised(tail, encode(tail.text))


def _seam_token(left: Tokenised, right: Tokenised) -> tuple[int, int] | None:
    """Return the place of the first token after the seam in each window; None where they differ around it."""
    reach = left.window.after // 2  # the half that is nearer to the seam than to an end of the window
    places = np.array([-reach, 0, reach])
    low, seam, high = np.searchsorted(left.tokens.starts, left.window.end + places).tolist()
    lowest, first, highest = np.searchsorted(right.tokens.starts, right.window.begin + places).tolist()
    here, there = left.tokens, right.tokens
    alike = (
        low < high
        and seam - low == first - lowest
        and np.array_equal(here.ids[low:high], there.ids[lowest:highest])
        and np.array_equal(here.starts[low:high] - left.window.end, there.starts[lowest:highest] - right.window.begin)
        and np.array_equal(here.ends[low:high] - left.window.end, there.ends[lowest:highest] - right.window.begin)
    )
    return (seam, first) if alike else None


def _begun_anew(left: Tokenised, right: Window) -> Iterator[Window]:
    """Yield a window without its beginning, so that it begins with a token of the window before, or just before one."""
    shared = left.window.end - right.begin  # where the right window begins, in bytes of the left one
    at = int(np.searchsorted(left.tokens.starts, shared + 4 * SHIFTS))
    if at == left.tokens.starts.size:
        return
    place = len(right.text.encode()[: int(left.tokens.starts[at]) - shared].decode())
    for begin in range(place, place - SHIFTS, -1):
        if begin < right.before:
            yield Window(right.text[begin:], right.before - begin, right.after)
