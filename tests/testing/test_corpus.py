"""Each check of CorpusContract refuses a corpus that is wrong in just that."""

from pathlib import Path

import pytest

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.corpus import Corpus, Document, Found
from stackwise_core.testing.corpus import CorpusContract


class Lines(Corpus):
    """A document a line of a file, in capitals for validation; the options are the file."""

    @property
    def name(self):
        return str(self.options)

    def find(self, purpose):
        return Found(split="lower", validation="upper") if purpose == "training" else Found(split="upper")

    def files(self, split):
        return [self.options]

    def fingerprint(self, split, hashes):
        return [("lines", split, hashes[self.options])]

    def documents(self, split, consumed):
        for number, line in enumerate(self.options.read_text().splitlines(), 1):
            consumed(len(line) + 1)
            yield Document(f"{self.name}:{number}", (line.upper() if split == "upper" else line,))


def written(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text("one\ntwo\nthree\n")
    return file


class TestRight(CorpusContract):
    @pytest.fixture
    def make(self, tmp_path):
        file = written(tmp_path)
        return lambda: Lines(file)

    @pytest.fixture
    def change(self, tmp_path):
        return lambda: (tmp_path / "text.txt").write_text("one\ntwo\nthird\n")


class OneSplitTwice(Lines):
    def find(self, purpose):
        return Found(split="lower", validation="lower")


class Empty(Lines):
    def documents(self, split, consumed):
        yield Document("nothing", ("",))


class Shrinking(Lines):
    """Gives what it hasn't given yet."""

    given = 0

    def documents(self, split, consumed):
        for document in list(super().documents(split, consumed))[self.given :]:
            self.given += 1
            yield document


class Blurred(Lines):
    def fingerprint(self, split, hashes):
        return [("lines", hashes[self.options])]


class Plain(Lines):
    def fingerprint(self, split, hashes):
        return [*super().fingerprint(split, hashes)[0], str(len(split))]


class Restless(Lines):
    def fingerprint(self, split, hashes):
        return [("lines", split, hashes[self.options], str(id(self)))]


class Deaf(Lines):
    def fingerprint(self, split, hashes):
        return [("lines", split, self.name)]


class Thorough(Lines):
    def fingerprint(self, split, hashes):
        return [("lines", split, *(document.text for document in self.documents(split, lambda size: None)))]


class Silent(Lines):
    def documents(self, split, consumed):
        return super().documents(split, lambda size: None)


class Heavy(Lines):
    def check(self, split):
        import torch

        torch.zeros(1)


WRONG = {
    "one split twice": ("test_it_finds_what_is_read", OneSplitTwice),
    "documents without text": ("test_documents_have_names_and_texts", Empty),
    "read once": ("test_documents_are_the_same_each_time", Shrinking),
    "splits alike": ("test_splits_are_apart", Blurred),
    "no tuples": ("test_the_fingerprint_is_texts", Plain),
    "another one each time": ("test_the_fingerprint_stays", Restless),
    "the name alone": ("test_the_fingerprint_follows_the_text", Deaf),
    "reads everything": ("test_the_fingerprint_reads_no_document", Thorough),
    "tells nothing": ("test_progress_comes_to_an_end", Silent),
    "needs torch": ("test_check_needs_no_torch", Heavy),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_corpora_are_refused(what, refuses, tmp_path, monkeypatch):
    """Each wrong corpus fails the check that is about it."""
    check, corpus = WRONG[what]
    file = written(tmp_path)
    fixtures = {"make": lambda: corpus(file)}
    if "follows" in check:
        fixtures["change"] = lambda: file.write_text("one\ntwo\nthird\n")
    if check in ("test_the_fingerprint_reads_no_document", "test_check_needs_no_torch"):
        fixtures["monkeypatch"] = monkeypatch
    refuses(CorpusContract(), check, StackwiseError, ImportError, **fixtures)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(CorpusContract, {check for check, _ in WRONG.values()})
