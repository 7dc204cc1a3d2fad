"""Messages of readers: the documented errors only, short, and harmless to a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.survival.fuzz.watch import Broken

LONGEST_LINE = 1500
"""Characters of a message's line: what a file says is cut short in it."""


@contextmanager
def refusing(*documented: type[Exception]) -> Iterator[None]:
    """Let only these exceptions come, with a message."""
    try:
        yield
    except documented as error:
        short(str(error))


def short(text: str) -> None:
    """Check that a message says something, and isn't as long as what it complains of."""
    if not text.strip():
        raise Broken("an empty message")
    if (longest := max(map(len, text.split("\n")))) > LONGEST_LINE:
        raise Broken(f"a message with a line of {longest} characters: {text[:300]!r}")


def legible(text: str) -> None:
    """Check that what is printed does nothing to a terminal."""
    if bad := [character for character in text if not (character.isprintable() or character in "\n\t")]:
        raise Broken(f"a message with {sorted(set(bad))}: {text[:300]!r}")
