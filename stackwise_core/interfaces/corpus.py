"""The hook ``corpus`` (provisional): where text comes from."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from stackwise_core.interfaces.component import Component

Purpose = Literal["training", "measuring"]

Consumed = Callable[[int], None]
"""Told, while documents are read, how many more of ``size`` were."""


@frozen
class Document:
    """A text that hangs together: no token of it sees another document's tokens."""

    name: str
    """Where it stands, such as a file and its line; for messages only."""
    parts: Iterable[str] = field(repr=False)
    """The text in pieces, in order. They are read as they are asked for: once, and before the next document is."""

    @property
    def text(self) -> str:
        """All of it, in memory."""
        return "".join(self.parts)


@frozen
class TextField:
    """The field of a record, or column of a table, that holds the text."""

    name: str = "text"
    """The field's name."""
    key: str = "data.text_field"
    """The configuration's key for it, for messages."""


@frozen(kw_only=True)
class Found:
    """What of a corpus is read for a purpose."""

    split: str = ""
    """The split to read, as the corpus calls it; empty: the corpus has none, and all of it is read."""
    validation: str = ""
    """The corpus's own validation split, where another one is read for training; empty: there is none."""
    left_out: tuple[str, ...] = ()
    """What else is there and isn't read, in words, such as ``split test``; the plan says so."""
    remarks: tuple[str, ...] = ()
    """Other things that a user should know before training, in words without a full stop; the plan says so."""


class Corpus(Component):
    """Gives documents, in the same order each time.

    It is made from its options without a look at the text. ``find`` is called first, once. A split that the other
    methods are given is one that it returned: ``Found.split`` or ``Found.validation``. None of it imports torch.

    What is wrong with the text is a ``UsageError`` that says where. Of any other exception the user is told its type
    and its text, and which corpus it is about.
    """

    field: TextField = TextField()
    """The field that holds the text, as ``data.text_field`` or a source's own says; set before ``find``. Corpora
    without fields pass it over."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return where the text is, as the user would write it; messages begin with it."""

    def find(self, purpose: Purpose) -> Found:
        """Find what is read, without reading a text; by default all of it, which has no splits.

        Args:
            purpose: ``"measuring"`` where the whole text is for validation, ``"training"`` otherwise.

        Raises:
            UsageError: there is no text, or it isn't clear which split is meant.
            UnavailableError: a package that reads it isn't there.
        """
        return Found()

    def files(self, split: str) -> Sequence[Path]:
        """Return the files whose bytes decide a split's documents; by default none.

        The core hashes them, anew where they may have changed, and refuses those that change while they are read.
        """
        return ()

    @abstractmethod
    def fingerprint(self, split: str, hashes: Mapping[Path, str]) -> Sequence[tuple[str, ...]]:
        """Return everything that decides a split's documents, and nothing else: tuples of texts, in order.

        Tokens are found again by it, so that it is asked for at every start: it must be cheap when nothing changed.
        Begin with a word for the kind of corpus, which no other kind has.

        Args:
            hashes: of the bytes of each of ``files``, in hexadecimal.
        """

    def size(self, split: str) -> int:
        """Return how much there is to read, in the unit that ``documents`` counts in; by default the files' bytes.

        0: unknown, and the progress has no end in sight.
        """
        return sum(file.stat().st_size for file in self.files(split))

    @abstractmethod
    def documents(self, split: str, consumed: Consumed) -> Iterator[Document]:
        """Stream a split's documents. Those without a character are passed over.

        Args:
            consumed: to be told how much more was read.

        Raises:
            UsageError: something isn't what it should be. It may be raised when the stream gets there.
        """

    def check(self, split: str) -> None:
        """Look at the beginning of a split for ``stackwise check``; by default its first document is read.

        Raises:
            UsageError: as ``documents``.
        """
        next(iter(self.documents(split, lambda size: None)), None)
