"""Files of text as a stream of documents, whatever their formats."""

from collections.abc import Iterable, Iterator

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Consumed, Document, TextField
from stackwise_core.system.files import unreadable
from stackwise_text.files import CorpusFile
from stackwise_text.finding import find_files
from stackwise_text.jsonl import read_jsonl
from stackwise_text.parquet import read_parquet
from stackwise_text.saved import read_saved
from stackwise_text.text import read_text
from stackwise_text.topics import read_topics


def documents(corpus: str, *, text_field: str = "text") -> Iterator[Document]:
    """Stream the documents of a corpus, in an order that depends on the names of its files only.

    A .txt or .md file is one document, so is a line of a .jsonl, and a row of a .parquet or of a saved data set; empty
    ones and blank lines are passed over. Bytes are kept as they are, line ends included, but for a byte order mark.

    Args:
        corpus: as ``find_corpus`` has it.
        text_field: field of a line, or column, that holds the text.

    Raises:
        UsageError: nothing is there, or something in it isn't what it should be. Since documents are streamed, a
            fault in a file shows when the stream gets there.
        UnavailableError: a package that reads one of the formats isn't there.
    """
    found = False
    for document in read_files(find_files(corpus), TextField(text_field)):
        found = True
        yield document
    if not found:
        raise UsageError(f"{corpus}: expected text, but there is not one character in it")


def read_files(files: Iterable[CorpusFile], field: TextField, consumed: Consumed | None = None) -> Iterator[Document]:
    """Stream the documents of some files.

    Args:
        consumed: told how many bytes of the files were read since it was told last.

    Raises:
        UsageError: as ``documents``.
    """
    for file in files:
        try:
            yield from _documents(file, field, consumed)
        except OSError as error:
            raise unreadable(file.path, error) from None


def _documents(file: CorpusFile, field: TextField, consumed: Consumed | None) -> Iterator[Document]:
    if file.format == "text":
        return read_text(file, consumed)
    if file.format == "jsonl":
        return read_jsonl(file, field, consumed)
    if file.format == "parquet":
        return read_parquet(file, field, consumed)
    return read_saved(file, field, consumed) if file.format == "arrow" else read_topics(file, consumed)
