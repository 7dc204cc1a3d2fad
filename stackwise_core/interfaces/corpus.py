"""The hook ``corpus`` (provisional): where text comes from."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from stackwise_core.interfaces.component import Component

Purpose = Literal["training", "measuring"]

Consumed = Callable[[int], None]
"""Callback that counts progress: it gets the part of ``size`` read since the last call."""


@frozen
class Document:
    """A connected text. Its tokens never attend to another document's."""

    name: str
    """Place of the document, such as a file and a line. For messages only."""
    parts: Iterable[str] = field(repr=False)
    """The text in pieces, in order. The core reads them once, before it asks for the next document."""

    @property
    def text(self) -> str:
        """The whole text, in memory."""
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
    """The part of a corpus that is read for a purpose."""

    split: str = ""
    """Name of the split to read. Empty: the corpus has no splits, and all of it is read."""
    validation: str = ""
    """Name of the corpus's own validation split, where another one is read for training. Empty: there is none."""
    left_out: tuple[str, ...] = ()
    """Parts that aren't read, in words, such as ``split test``. The plan names them."""
    remarks: tuple[str, ...] = ()
    """Other facts to know before training, in words without a full stop. The plan shows them."""


class Corpus(Component):
    """Reader of documents, in the same order each time.

    It is made from its options, without reading the text. ``find`` is called first, once. The other methods get a split
    that it returned: ``Found.split`` or ``Found.validation``. No method imports torch.

    Report a fault in the text as a ``UsageError`` with its place. For any other exception the user sees its type, its
    text, and the corpus's name.
    """

    field: TextField = TextField()
    """The field that holds the text: ``data.text_field``, or that of its table in ``data.sources``. Set before
    ``find``. Corpora without fields ignore it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the place of the text, as the user would write it. Messages begin with it."""

    def find(self, purpose: Purpose) -> Found:
        """Find the part to read, without reading a text. By default the corpus has no splits and all of it is read.

        Args:
            purpose: ``"measuring"`` where the whole text is for validation, ``"training"`` otherwise.

        Raises:
            UsageError: there is no text, or it isn't clear which split is meant.
            UnavailableError: a package that reads it isn't installed.
        """
        return Found()

    def files(self, split: str) -> Sequence[Path]:
        """Return the files whose bytes decide a split's documents; by default none.

        The core hashes these files, again where they may have changed. It refuses files that change while it reads.
        """
        return ()

    @abstractmethod
    def fingerprint(self, split: str, hashes: Mapping[Path, str]) -> Sequence[tuple[str, ...]]:
        """Return everything that decides a split's documents, and nothing else: tuples of texts, in order.

        The core finds existing tokens by it at every start, so it must be cheap when nothing changed. Begin with a word
        that no other kind of corpus uses.

        Args:
            hashes: the hash of each of ``files``, in hexadecimal.
        """

    def size(self, split: str) -> int:
        """Return the amount to read, in the unit that ``documents`` counts in; by default the files' bytes.

        0: unknown; progress is then shown without a total.
        """
        return sum(file.stat().st_size for file in self.files(split))

    @abstractmethod
    def documents(self, split: str, consumed: Consumed) -> Iterator[Document]:
        """Stream a split's documents. Empty ones are skipped.

        Args:
            consumed: call it with the amount read since the last call.

        Raises:
            UsageError: a fault in the text. Raise it when the stream reaches the fault, or before.
        """

    def check(self, split: str) -> None:
        """Check the beginning of a split, for ``stackwise check``; by default by reading its first document.

        Raises:
            UsageError: as ``documents``.
        """
        next(iter(self.documents(split, lambda size: None)), None)
