"""Documents of somebody's corpus: right, wrong, or changing during the reading."""

import numpy as np
import pytest
from attrs import evolve

from stackwise_core.engine.draws.sequences import tokenise
from stackwise_core.engine.text.text_source import NamedText, Source
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.corpus import Corpus, Document, Found

TEXTS = [f"A text of number {number}, in memory." for number in range(30)]


class Listed(Corpus):
    """Texts of a list, which the options are; its version is a count that the list has."""

    @property
    def name(self):
        return "the list"

    def fingerprint(self, split, hashes):
        return [("listed", *self.options)]

    def documents(self, split, consumed):
        for number, text in enumerate(self.options):
            yield Document(str(number), (text,))


class Growing(Listed):
    """Gets another text while it is read."""

    def documents(self, split, consumed):
        yield from list(super().documents(split, consumed))
        self.options.append("Another.")


class Failing(Listed):
    def documents(self, split, consumed):
        yield Document("0", ("One.",))
        raise LookupError("no such table: pages")


def source(corpus, **changes):
    return Source(NamedText(("data", "corpus"), corpus.name, corpus, **changes), "")


def prepared(corpus, data, **options):
    return tokenise([source(corpus)], data, load_tokenizer("bytes", mask_token=None), **options)


def test_a_corpus_without_files(data):
    """It is tokenised to its own text, found again by its own fingerprint, and made anew when that is another."""
    told = []
    first = prepared(Listed(TEXTS), data, progress=lambda size, share: told.append((size, share)))
    rows = first.train.rows(np.arange(len(first.train)))
    assert first.documents == len(TEXTS)
    assert first.train.tokens + first.validation.tokens == len("".join(TEXTS))
    assert bytes(rows.tokens[0].tolist()).decode() in "".join(TEXTS)
    assert told == [(len("".join(TEXTS)), 1.0)]  # of an unknown size no share is known
    again = prepared(Listed(TEXTS), data, progress=lambda size, share: told.append((size, share)))
    assert (again.directory, len(told)) == (first.directory, 1)
    assert prepared(Listed([*TEXTS, "More."]), data).directory != first.directory


def test_a_text_that_changes_as_it_is_read(data, tmp_path):
    """Its fingerprint is asked for again, and nothing is left behind."""
    with pytest.raises(StackwiseError, match="the list: the text changed while it was being read; run again"):
        prepared(Growing(list(TEXTS)), data)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == []


def test_what_a_corpus_raises_is_told_of_its_text(data):
    """An exception of a database, say, with its type, and whose it is."""
    corpus = Failing(TEXTS)
    corpus.origin = 'corpus "listed" of mine.py'
    with pytest.raises(UsageError) as caught:
        prepared(corpus, data)
    assert str(caught.value) == 'the list: LookupError: no such table: pages (corpus "listed" of mine.py)'
    assert isinstance(caught.value.__cause__, LookupError)


class Gone(Listed):
    def size(self, split):
        raise FileNotFoundError(2, "No such file or directory", "/texts.db")


def test_a_file_that_is_gone_is_named(data):
    """By its own name, and not as if tokens couldn't be written."""
    with pytest.raises(UsageError, match=r"^/texts\.db: expected a file that can be read: No such file or directory$"):
        prepared(Gone(TEXTS), data)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("fingerprint", "abc", "fingerprint() gave 'abc', expected a list of tuples of texts"),
        ("fingerprint", [("listed", 3)], "fingerprint() gave [('listed', 3)], expected a list of tuples of texts"),
        ("documents", ["One."], "documents() gave 'One.', expected a Document"),
        ("find", None, "find() gave None, expected a Found"),
    ],
)
def test_what_breaks_the_contract_is_the_plugin_s_fault(data, method, given, said):
    """It is told by the method, with what it gave."""
    corpus = type("Wrong", (Listed,), {method: lambda self, *arguments: given})(TEXTS)

    def use():
        source(corpus).named.find()
        prepared(corpus, data)

    with pytest.raises(ContractError) as caught:
        use()
    assert said in str(caught.value)


class Asked(Listed):
    """Notes what it was asked for in its options."""

    def find(self, purpose):
        self.options.append(purpose)
        return Found()


def test_the_purpose_is_what_the_text_is_for():
    """Measuring where nothing of it is trained on."""
    asked = []
    named = source(Asked(asked)).named
    for text in (named, evolve(named, is_validation=True)):
        text.find()
    assert asked == ["training", "measuring"]
