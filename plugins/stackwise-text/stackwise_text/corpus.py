"""The corpus ``files``: a built-in one, a file, a directory or a glob, with the splits that a data set has."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from stackwise_core.interfaces.corpus import Consumed, Corpus, Document, Found, Purpose
from stackwise_text.files import CorpusFile
from stackwise_text.finding import find_corpus, splits_in_glob
from stackwise_text.options import FilesOptions
from stackwise_text.reading import read_files

NOTHING = xxh3_128(b"").hexdigest()


class Files(Corpus):
    """Reads files by their names' endings, in the order of their paths."""

    options: FilesOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._splits: dict[str, tuple[CorpusFile, ...]] = {}

    @property
    def name(self) -> str:
        """The path as the configuration has it."""
        return self.options.path

    def find(self, purpose: Purpose) -> Found:
        """Find the files of the split that is meant; without opening a text."""
        found = find_corpus(self.name, purpose)
        self._splits = {found.validation_split: found.validation, found.split: found.files}
        mixed = splits_in_glob(self.name, found.files) if purpose == "training" else []
        all_of_them = f"its files are named for several splits ({', '.join(mixed)}), and all of them are trained on"
        return Found(
            split=found.split,
            validation=found.validation_split,
            left_out=found.left_out,
            remarks=(all_of_them,) if mixed else (),
        )

    def files(self, split: str) -> Sequence[Path]:
        """Return the paths of a split's files."""
        return [file.path for file in self._splits[split]]

    def fingerprint(self, split: str, hashes: Mapping[Path, str]) -> Sequence[tuple[str, ...]]:
        """Return format, compression, field and content of each file; names don't count, nor do empty texts."""
        return [
            (file.format, file.compression, self.field.name if file.has_fields else "", hashes[file.path])
            for file in self._splits[split]
            if hashes[file.path] != NOTHING or not file.may_have_no_bytes
        ]

    def documents(self, split: str, consumed: Consumed) -> Iterator[Document]:
        """Stream a document for each file, line or row."""
        return read_files(self._splits[split], self.field, consumed)

    def check(self, split: str) -> None:
        """Read the first document, but of no Arrow file: ``datasets`` takes longer to import than all else together."""
        first = self._splits[split][:1]
        if first and first[0].format != "arrow":
            next(read_files(first, self.field), None)
