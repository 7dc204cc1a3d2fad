"""Contract of every corpus."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from xxhash import xxh3_128

from stackwise_core.interfaces.corpus import Corpus, Document, Found

Make = Callable[[], Corpus]


def nothing(size: int) -> None:
    """Heed no progress."""


def found_in(corpus: Corpus) -> Found:
    """Return what a corpus finds for training."""
    return corpus.find("training")


def splits_of(found: Found) -> list[str]:
    """Return the splits that are read: to train on, and the corpus's own for validation."""
    return [found.split, *([found.validation] if found.validation else [])]


def content_of(corpus: Corpus, split: str) -> Sequence[tuple[str, ...]]:
    """Return a split's fingerprint, with the hashes that the core gives it."""
    hashes: Mapping[Path, str] = {file: xxh3_128(file.read_bytes()).hexdigest() for file in corpus.files(split)}
    return corpus.fingerprint(split, hashes)


def read(corpus: Corpus, split: str) -> list[tuple[str, str]]:
    """Return names and texts of a split's documents."""
    return [(document.name, document.text) for document in corpus.documents(split, nothing)]


class CorpusContract:
    """Subclass it and provide the fixtures ``make`` and ``change``."""

    @pytest.fixture
    def make(self) -> Make:
        """A function that makes the corpus to test, over the same text each time; it has a document at least."""
        raise NotImplementedError("the subclass provides the fixture `make`")

    @pytest.fixture
    def change(self) -> Callable[[], object]:
        """A function that changes a letter of the text that is trained on."""
        raise NotImplementedError("the subclass provides the fixture `change`")

    def test_it_finds_what_is_read(self, make: Make) -> None:
        """It finds a text for training and for measuring; its own validation split isn't the one it trains on."""
        for purpose in ("training", "measuring"):
            found = make().find(purpose)
            assert isinstance(found, Found)
            assert not found.validation or found.validation != found.split
            assert purpose == "training" or not found.validation

    def test_documents_have_names_and_texts(self, make: Make) -> None:
        """Every split gives documents; each has a name for messages, and text in its parts."""
        corpus = make()
        assert isinstance(corpus.name, str)
        assert corpus.name
        for split in splits_of(found_in(corpus)):
            count = 0
            for document in corpus.documents(split, nothing):
                assert isinstance(document, Document)
                assert isinstance(document.name, str)
                assert document.name
                parts = list(document.parts)
                assert all(isinstance(part, str) for part in parts)
                assert any(parts), "a document without a character is passed over"
                count += 1
            assert count, f"the split {split!r} has no document"

    def test_documents_are_the_same_each_time(self, make: Make) -> None:
        """Another object and a second reading give the same documents in the same order, which numbers the samples."""
        corpus, other = make(), make()
        for split in splits_of(found_in(corpus)):
            first = read(corpus, split)
            assert read(corpus, split) == first
        for split in splits_of(found_in(other)):
            assert read(other, split) == read(corpus, split)

    def test_splits_are_apart(self, make: Make) -> None:
        """No document for validation is among those for training."""
        corpus = make()
        contents = [content_of(corpus, split) for split in splits_of(found_in(corpus))]
        assert len({tuple(content) for content in contents}) == len(contents)

    def test_the_fingerprint_is_texts(self, make: Make) -> None:
        """Tuples of texts, the first of which say what kind of corpus it is."""
        corpus = make()
        for split in splits_of(found_in(corpus)):
            parts = content_of(corpus, split)
            assert parts
            assert all(
                isinstance(part, tuple) and part and all(isinstance(each, str) for each in part) for part in parts
            )

    def test_the_fingerprint_stays(self, make: Make) -> None:
        """Tokens are found again by it: another object gives the same, now and after the text was read."""
        corpus, other = make(), make()
        split = found_in(corpus).split
        before = list(content_of(corpus, split))
        read(corpus, split)
        assert list(content_of(corpus, split)) == before
        assert list(content_of(other, found_in(other).split)) == before

    def test_the_fingerprint_follows_the_text(self, make: Make, change: Callable[[], object]) -> None:
        """A letter that changes makes another one, for a corpus that was made before and for one that is made after."""
        corpus = make()
        split = found_in(corpus).split
        before, texts = list(content_of(corpus, split)), read(corpus, split)
        change()
        other = make()
        assert read(other, found_in(other).split) != texts
        assert list(content_of(corpus, split)) != before
        assert list(content_of(other, split)) != before

    def test_the_fingerprint_reads_no_document(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is asked for at every start, so that it must be cheap when nothing changed."""
        corpus = make()
        split = found_in(corpus).split

        def refuse(*arguments: object) -> None:
            pytest.fail("a document was read for the fingerprint")

        monkeypatch.setattr(type(corpus), "documents", refuse)
        assert content_of(corpus, split)

    def test_progress_comes_to_an_end(self, make: Make) -> None:
        """Where its size is known, it reports how much was read as it reads, and the count never falls."""
        corpus = make()
        for split in splits_of(found_in(corpus)):
            size, told = corpus.size(split), list[int]()
            for document in corpus.documents(split, told.append):
                list(document.parts)
            assert size >= 0
            assert all(isinstance(each, int) and each >= 0 for each in told)
            assert not size or sum(told) > 0

    def test_check_needs_no_torch(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """``stackwise check`` looks at the beginning of each split, and works where torch is broken."""
        monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises
        corpus = make()
        for split in splits_of(found_in(corpus)):
            corpus.check(split)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; import {type(corpus).__module__}; print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.split()[-1:] == ["False"], done.stderr
