"""A text and the part of it that is read, with checks that its corpus keeps the contract."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.corpus import Consumed, Corpus, Document, Found
from stackwise_core.system.files import EXHAUSTED, unreadable


@frozen
class NamedText:
    """A text as the configuration names it."""

    key: tuple[str, ...]
    """The key that says where it is."""
    name: str
    """What it is called: a source's name, or where it is."""
    corpus: Corpus
    weight: float = 1.0
    """How many times an epoch passes over it."""
    is_validation: bool = False
    """Whether it is the validation split, and nothing else is."""

    def find(self) -> Found:
        """Find what of it is read, as ``Corpus.find``."""
        with answering(self.corpus):
            found = self.corpus.find("measuring" if self.is_validation else "training")
        if not isinstance(found, Found):
            raise ContractError(self.corpus, f"find() gave {found!r:.80}, expected a Found")
        return found

    def check(self, split: str) -> None:
        """Look at the beginning of a split, as ``Corpus.check``."""
        with answering(self.corpus):
            self.corpus.check(split)


@frozen
class Source:
    """A named text and what of it is read."""

    named: NamedText
    split: str
    """As the corpus calls it."""
    note: str = ""
    """Which split of a data set it is and what of the corpus isn't read, where there is something to say."""

    @property
    def where(self) -> str:
        """Place of the text, for messages."""
        return self.named.corpus.name

    def files(self) -> Sequence[Path]:
        """Return the files that the core hashes, as ``Corpus.files``."""
        with answering(self.named.corpus):
            return self.named.corpus.files(self.split)

    def size(self) -> int:
        """Return the amount to read; see ``Corpus.size``."""
        with answering(self.named.corpus):
            return self.named.corpus.size(self.split)

    def content(self, hashes: Mapping[Path, str]) -> list[tuple[str, ...]]:
        """Return what decides its documents, as ``Corpus.fingerprint``.

        Args:
            hashes: of its files, and maybe others.
        """
        corpus, own = self.named.corpus, {file: hashes[file] for file in self.files()}
        with answering(corpus):
            given = corpus.fingerprint(self.split, own)
        is_right = isinstance(given, list | tuple) and all(
            isinstance(part, tuple) and all(isinstance(text, str) for text in part) for part in given
        )
        if not is_right:
            raise ContractError(corpus, f"fingerprint() gave {given!r:.80}, expected a list of tuples of texts")
        return list(given)

    def documents(self, consumed: Consumed) -> Iterator[Document]:
        """Stream its documents, as ``Corpus.documents``."""
        corpus = self.named.corpus
        with answering(corpus):
            for document in corpus.documents(self.split, consumed):
                if not isinstance(document, Document):
                    raise ContractError(corpus, f"documents() gave {document!r:.80}, expected a Document")
                yield document


@contextmanager
def answering(corpus: Corpus) -> Iterator[None]:
    """Add the text's name to a corpus's exceptions, such as those of a database.

    Raises:
        UsageError: in place of what isn't an error of ours.
    """
    try:
        yield
    except (StackwiseError, MemoryError):
        raise
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise unreadable(Path(error.filename or corpus.name), error) from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        raise UsageError(f"{corpus.name}: {text} ({origin(corpus)})") from error
