"""A .txt or .md file: one document, read in parts, so that it may be larger than memory."""

from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Consumed, Document
from stackwise_text.compression import DamagedError, opened
from stackwise_text.files import CorpusFile
from stackwise_text.utf8 import decoded, whole_characters

PART = 1 << 20  # bytes


def read_text(file: CorpusFile, consumed: Consumed | None) -> Iterator[Document]:
    """Yield the file as one document, or nothing if it is empty."""
    with opened(file, consumed) as stream:
        parts = (part for part in _parts(stream, file) if part)
        first = next(parts, None)
        if first is not None:
            yield Document(str(file.path), chain([first], parts))


def _parts(stream: BinaryIO, file: CorpusFile) -> Iterator[str]:
    rest, line, offset = b"", 1, 0
    while True:
        try:
            block = stream.read(PART)
        except DamagedError as error:
            raise UsageError(f"{file.path}:{line}: {error}") from None
        raw = rest + block
        if not raw:
            return
        size = whole_characters(raw) if block else len(raw)
        raw, rest = raw[:size], raw[size:]
        yield decoded(raw, file, line=line, offset=offset)
        line, offset = line + raw.count(b"\n"), offset + size
