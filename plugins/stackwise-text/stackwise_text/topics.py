"""The built-in corpus: the reference texts that ship with CPython."""

from collections.abc import Iterator

from stackwise_core.interfaces.corpus import Consumed, Document
from stackwise_text.files import CorpusFile


def read_topics(file: CorpusFile, consumed: Consumed | None) -> Iterator[Document]:
    """Yield one document for each topic, ordered by name."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if topics[name]:
            yield Document(name, (topics[name],))
    if consumed:
        consumed(file.path.stat().st_size)
