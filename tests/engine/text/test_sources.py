"""Several texts with weights, and a text for validation: against counts from the definition."""

import gzip
import json
import logging
from collections import Counter

import numpy as np
import pyarrow
import pytest
from attrs import evolve
from click.testing import CliRunner
from pyarrow import parquet

from stackwise_core.cli import main
from stackwise_core.config.model import DataConfig, SourceConfig
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import UsageError
from tests.texts import files, prepared

SEQ_LEN = 8


ALPHABETS = {"a": "ABCDEFGHIJKL", "b": "abcdefghijkl", "c": "!#$%&()*+,-."}


def words(name, count):
    """Documents, none like another, in characters that no other name's have."""
    plain = (f"x{number:03} " + f"x{number * 17 % 101} " * (number % 23) for number in range(count))
    return [text.translate(str.maketrans("0123456789 x", ALPHABETS[name])) for text in plain]


@pytest.fixture
def mixed(tmp_path):
    """A function that prepares texts by name, each with its weight, as sources."""

    def run(texts, weights=(), held_out=None, tokenizer="bytes", causal=False, **options):
        for name, documents in [*texts.items(), *([("held_out", held_out)] if held_out else [])]:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        weights = dict(zip(texts, weights, strict=False))
        data = DataConfig(
            sources={name: SourceConfig(files(tmp_path / f"{name}.jsonl"), weights.get(name, 1.0)) for name in texts},
            validation=files(tmp_path / "held_out.jsonl") if held_out else None,
            seq_len=SEQ_LEN,
            tokens_directory=str(tmp_path / "tokens"),
        )
        return prepared(evolve(data, **options), load_tokenizer(str(tokenizer), mask_token=None), causal=causal)

    return run


def rows(split):
    """Each sample as its segments' texts."""
    read = split.rows(np.arange(len(split)))
    return [
        tuple(bytes(tokens[segments == number].tolist()).decode() for number in range(1, segments.max() + 1))
        for tokens, segments in zip(read.tokens, read.segments, strict=True)
    ]


def names(sample):
    """Return the names of the corpora whose characters are in it."""
    return {name for text in sample for name, alphabet in ALPHABETS.items() if set(text) & set(alphabet)}


A, B = words("a", 60), words("b", 40)


def test_whole_weights_repeat_rows(mixed):
    """A weight of 3 has each training row three times, each a sample of its own, and stores it once."""
    once, thrice = mixed({"a": A, "b": B}), mixed({"a": A, "b": B}, [1, 3])
    wanted = Counter(rows(once.train))
    for sample in wanted:
        wanted[sample] *= 3 if names(sample) == {"b"} else 1
    assert Counter(rows(thrice.train)) == wanted
    for name in ("train.tokens", "validation.tokens", "validation.rows"):
        assert (once.directory / name).read_bytes() == (thrice.directory / name).read_bytes()
    assert (once.train.tokens, once.train.bytes) == (thrice.train.tokens, thrice.train.bytes)


def test_documents_stay_in_their_source(mixed):
    """No row holds text of two sources, in either split."""
    corpus = mixed({"a": A, "b": B}, [1.5, 2])
    for split in (corpus.train, corpus.validation):
        assert all(len(names(sample)) == 1 for sample in rows(split))
        assert set.union(*map(names, rows(split))) == {"a", "b"}


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.75, 2.5])
def test_parts_of_weights_choose_passages(mixed, weight):
    """A weight of 2.5 has two passes over everything and a third over half; all are parts of whole documents."""
    whole, part = mixed({"a": A, "b": B}), mixed({"a": A, "b": B}, [weight])
    ours = sum(len(text) for sample in rows(part.train) if names(sample) == {"a"} for text in sample)
    all_of_it = sum(len(text) for sample in rows(whole.train) if names(sample) == {"a"} for text in sample)
    assert ours / all_of_it == pytest.approx(weight, abs=0.1)
    assert all(any(text in document for document in A + B) for sample in rows(part.train) for text in sample)
    assert [sample for sample in rows(part.train) if names(sample) == {"b"}] == [
        sample for sample in rows(whole.train) if names(sample) == {"b"}
    ]
    assert rows(part.validation) == rows(whole.validation)


@pytest.mark.parametrize("weight", [0.01, 0.3, 2.5])
def test_a_part_of_one_document(mixed, plain_bpe, weight):
    """A share of a source is exact to a row however few passages it has, and so are its tokens and its bytes."""
    text, tokenizer = "".join(A), load_tokenizer(str(plain_bpe), mask_token=None)
    corpus = mixed({"a": [text]}, [weight], tokenizer=plain_bpe, validation_fraction=0.0)
    samples = corpus.train.rows(np.arange(len(corpus.train)))
    tokens = tokenizer.encode([text])[0][0].size
    assert 0 <= samples.scorable.sum() - weight * tokens < SEQ_LEN
    read = Counter(map(tokenizer.decode, samples.tokens.tolist()))
    assert all(sample in text for sample in read)
    once = corpus.train if weight < 1 else mixed({"a": [text]}, tokenizer=plain_bpe, validation_fraction=0.0).train
    assert (corpus.train.tokens, corpus.train.bytes) == (once.tokens, once.bytes)
    assert corpus.train.bytes == (sum(map(len, read.elements())) if weight < 1 else len(text))


def test_a_small_source_leaves_others_as_they_are(mixed):
    """A part of a small source has no say in how others are cut and what of them is held out."""
    document = ["".join(A)]
    held_out = [mixed({"a": document, "b": B[:2]}, [1, weight]).validation for weight in (1, 0.01)]
    assert rows(held_out[0]) == rows(held_out[1])


def test_the_choice_follows_the_content(mixed):
    """Which passages a weight below 1 leaves depends on neither their order nor the other sources."""

    def chosen(documents, **others):
        corpus = mixed({"a": documents, **others}, [0.5], validation_fraction=0.0)
        return sorted(text for sample in rows(corpus.train) if names(sample) == {"a"} for text in sample)

    short = [text[:SEQ_LEN].ljust(SEQ_LEN, ".") for text in A]  # a row each, so that rows are the same in any order
    assert chosen(short) == chosen(short[::-1]) == chosen(short, b=B)
    assert 0 < len(chosen(short)) < len(short)


def test_counts_by_source(mixed):
    """What is told of each source adds up to the splits, found again or made."""
    for _ in range(2):
        corpus = mixed({"a": A, "b": B}, [2, 0.5])
        assert [(source.name, source.weight, source.documents) for source in corpus.sources] == [
            ("a", 2, len(A)),
            ("b", 0.5, len(B)),
        ]
        for name in ("train", "validation"):
            split, counts = getattr(corpus, name), [getattr(source, name) for source in corpus.sources]
            assert sum(count.samples for count in counts) == len(split)
            assert sum(count.tokens for count in counts) == split.tokens
            assert sum(count.bytes for count in counts) == split.bytes
            for letter, count in zip("ab", counts, strict=True):
                assert count.samples == sum(names(sample) == {letter} for sample in rows(split))


def test_names_of_sources_do_not_matter(mixed):
    """A source may be renamed without anything being tokenised again."""
    one, other = mixed({"a": A}, [2]), mixed({"x": A}, [2])
    assert one.directory == other.directory
    assert [source.name for source in other.sources] == ["x"]


def test_weights_make_another_corpus(mixed):
    """A weight is part of what decides the rows."""
    assert len({mixed({"a": A, "b": B}, weights).fingerprint for weights in ([1, 1], [2, 1], [1, 2], [1, 0.5])}) == 4


def test_one_source_is_a_corpus(mixed, tmp_path):
    """A single source of weight 1 has the rows of a corpus."""
    named = mixed({"a": A})
    plain = mixed({}, corpus=files(tmp_path / "a.jsonl"))
    assert plain.directory == named.directory


def test_a_text_for_validation(mixed):
    """All of it is validated on and nothing else; nothing of the corpus is held out."""
    corpus = mixed({"a": A}, held_out=B)
    assert "".join(text for sample in rows(corpus.validation) for text in sample) == "".join(B)
    assert "".join(text for sample in rows(corpus.train) for text in sample) == "".join(A)
    assert corpus.left_out == 0
    assert (corpus.train.tokens, corpus.validation.tokens) == (len("".join(A)), len("".join(B)))


def test_what_is_validated_on_is_not_trained_on(mixed):
    """Passages that both texts have are left out of training, and counted; validation keeps them."""
    common = words("c", 10)
    corpus = mixed({"a": [*A[:20], *common, *A[20:]], "b": [*B, *common]}, [1, 2], held_out=[*common, B[3]])
    assert set.union(*map(names, rows(corpus.train))) == {"a", "b"}
    assert "".join(text for sample in rows(corpus.validation) for text in sample) == "".join([*common, B[3]])
    assert corpus.left_out == 2 * len("".join(common)) + len(B[3])
    assert [source.validation.samples > 0 for source in corpus.sources] == [False, False, True]


def test_a_short_text_for_validation(mixed):
    """It is one padded row."""
    corpus = mixed({"a": A}, held_out=["short"])
    assert rows(corpus.validation) == [("short",)]


def test_nothing_but_validation(mixed):
    """A corpus that is the validation text over again leaves nothing to train on, and says why."""
    with pytest.raises(UsageError) as caught:
        mixed({"a": A}, held_out=A)
    assert "all of it is in data.validation too, and so none is left for training" in str(caught.value)


def test_a_field_for_each_source(tmp_path):
    """A source's own text_field is read, and named when it isn't there."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in A))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in B))
    sources = {
        "a": SourceConfig(files(tmp_path / "a.jsonl"), text_field="body"),
        "b": SourceConfig(files(tmp_path / "b.jsonl")),
    }
    data = DataConfig(sources=sources, seq_len=SEQ_LEN, tokens_directory=str(tmp_path / "tokens"))
    tokenizer = load_tokenizer("bytes", mask_token=None)
    assert prepared(data, tokenizer).documents == len(A) + len(B)
    sources["b"] = evolve(sources["b"], text_field="txt")
    with pytest.raises(UsageError, match=r'expected a field "txt" \(data\.sources\.b\.text_field\)'):
        prepared(data, tokenizer)


def test_an_empty_source(mixed):
    """A source without a character is named."""
    with pytest.raises(UsageError, match=r"b\.jsonl: expected text, but there is not one character in it"):
        mixed({"a": A, "b": [""]})


def test_nothing_is_read_twice(mixed, monkeypatch, caplog):
    """A second start opens no text and decodes nothing."""
    from stackwise_core.engine.text import content_index
    from stackwise_text import corpus

    monkeypatch.setattr(content_index, "SETTLED_AFTER", -(10**12))
    with caplog.at_level(logging.DEBUG):
        first = mixed({"a": A, "b": B})
    content = [(source.name, source.train) for source in first.sources]

    def refuse(*arguments, **options):
        raise AssertionError("something was read")

    monkeypatch.setattr(content_index, "_read", refuse)
    monkeypatch.setattr(corpus, "read_files", refuse)
    data = DataConfig(
        sources={name: SourceConfig(files(first.directory.parents[1] / f"{name}.jsonl")) for name in "ab"},
        seq_len=SEQ_LEN,
        tokens_directory=str(first.directory.parent),
    )
    again = prepared(data, load_tokenizer("bytes", mask_token=None))
    assert [(source.name, source.train) for source in again.sources] == content


CONFIG = """
[data]
seq_len = 8
validation = "held/*.txt"

[data.sources.first]
corpus = "a.jsonl.gz"

[data.sources."the second"]
corpus = "b.parquet"
"""


def check(folder, *overrides, config=CONFIG):
    (folder / "run.toml").write_text(config)
    arguments = [argument for override in overrides for argument in ("--set", override)]
    return CliRunner().invoke(main, ["check", str(folder / "run.toml"), *arguments])


def test_check_finds_missing_files(tmp_path):
    """Every text that isn't there is told at once, with its line, and paths are those of the TOML's folder."""
    result = check(tmp_path)
    assert result.exit_code == 2
    for line, key, name in [
        (4, "data.validation", "held/*.txt"),
        (7, "data.sources.first.corpus", "a.jsonl.gz"),
        (10, 'data.sources."the second".corpus', "b.parquet"),
    ]:
        assert f"run.toml:{line}:" in result.output
        assert f"{key}: {tmp_path}/{name}: nothing is there" in result.output
    (tmp_path / "held").mkdir()
    (tmp_path / "held/x.txt").write_text("words")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "b.parquet").write_bytes(b"words")
    result = check(tmp_path)
    assert "run.toml:10:" in result.output
    assert "expected a whole parquet file, found a damaged one" in result.output
    parquet.write_table(pyarrow.table({"text": ["words"]}), tmp_path / "b.parquet")
    assert check(tmp_path).exit_code == 0


def test_check_finds_missing_packages(tmp_path, monkeypatch):
    """A format whose reader isn't installed is told before anything runs, with exit code 3."""
    (tmp_path / "b.parquet").touch()
    monkeypatch.setattr("stackwise_text.files._installed", lambda package: False)
    result = check(tmp_path, config='[data]\ncorpus = "b.parquet"\n')
    assert result.exit_code == 3
    assert 'pip install "stackwise-text[datasets]"' in result.output


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("data.validation_fraction=0.1", ("data.validation", "data.validation_fraction")),
        ("data.corpus=python-docs", ("data.corpus", "data.sources")),
        ("data.sources.first.weight=0", ("data.sources.first.weight",)),
        ("data.sources.first.weigth=2", ("did you mean weight?",)),
        ("data.sources.third.weight=2", ("data.sources.third.corpus: missing",)),
        ("data.sources=[]", ("data.sources: expected a table of tables, found an array",)),
    ],
)
def test_contradictions(tmp_path, override, keys):
    """Keys that don't fit together, or that nothing knows, are one error that names them."""
    result = check(tmp_path, override)
    assert result.exit_code == 2
    assert all(key in result.output for key in keys)


def snapshot(folder, splits):
    """A data set's directory with a file a split, and a card."""
    folder.mkdir()
    for split, documents in splits.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{split}-00000.jsonl").write_text(lines)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    return str(folder)


def texts_of(split):
    return "".join(text for sample in rows(split) for text in sample)


def test_a_data_set_has_its_own_validation(mixed, tmp_path):
    """Train is trained on and validation measured on, as if both were named; equal passages are left out."""
    folder = snapshot(tmp_path / "set", {"train": [*A, *B[:3]], "validation": B, "test": words("c", 9)})
    corpus = mixed({}, corpus=files(folder))
    assert texts_of(corpus.train) == "".join(A)
    assert texts_of(corpus.validation) == "".join(B)
    assert corpus.left_out == len("".join(B[:3]))
    named = mixed({}, corpus=files(f"{folder}#train"), validation=files(f"{folder}#validation"))
    assert corpus.directory == named.directory
    assert [source.name for source in corpus.sources] == [folder, f"{folder}#validation"]
    assert corpus.notes == (
        f"{folder}: split train is trained on; split validation is measured on; left out: split test, README.md.",
    )


@pytest.mark.parametrize("key", ["validation_fraction", "validation"])
def test_what_the_configuration_says_of_validation_counts(mixed, tmp_path, key):
    """A share or a text that is asked for takes the place of the data set's own split, which is in neither."""
    folder = snapshot(tmp_path / "set", {"train": A, "validation": B})
    (tmp_path / "held.txt").write_text("".join(words("c", 20)))
    corpus = mixed(
        {}, corpus=files(folder), **{key: 0.2 if key == "validation_fraction" else files(tmp_path / "held.txt")}
    )
    held_out = set.union(*map(names, rows(corpus.validation)))
    assert held_out == ({"a"} if key == "validation_fraction" else {"c"})
    assert set.union(*map(names, rows(corpus.train))) == {"a"}
    assert f"left out: split validation (since data.{key} is set), README.md." in corpus.notes[0]


def test_a_data_set_without_validation(mixed, tmp_path):
    """A share of its training text is held out; its test text is in neither split."""
    corpus = mixed({}, corpus=files(snapshot(tmp_path / "set", {"train": A, "test": B})))
    assert sorted(texts_of(corpus.train) + texts_of(corpus.validation)) == sorted("".join(A))
    assert len(corpus.validation) > 0


def test_sources_have_their_own_validation(mixed, tmp_path):
    """Each source's own validation split is measured on, once whatever its weight; no row holds text of two."""
    one, two = ({"train": texts[10:], "dev": texts[:10]} for texts in (A, B))
    sources = {
        "a": SourceConfig(files(snapshot(tmp_path / "one", one)), weight=2),
        "b": SourceConfig(files(snapshot(tmp_path / "two", two))),
    }
    corpus = mixed({}, sources=sources)
    assert texts_of(corpus.validation) == "".join([*A[:10], *B[:10]])
    assert all(len(names(sample)) == 1 for sample in rows(corpus.validation))
    assert [source.name for source in corpus.sources] == ["a", "b", "a#validation", "b#validation"]


def test_all_sources_have_validation_or_none(mixed, tmp_path):
    """Where some have a validation split and others don't, the configuration must say what to measure on."""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in B))
    sources = {
        "a": SourceConfig(files(snapshot(tmp_path / "set", {"train": A, "validation": A}))),
        "b": SourceConfig(files(tmp_path / "b.jsonl")),
    }
    with pytest.raises(UsageError, match=r"b\.jsonl: expected a validation split of its own, as a has"):
        mixed({}, sources=sources)
    sources["a"] = evolve(sources["a"], corpus=files(f"{tmp_path}/set#train"))
    corpus = mixed({}, sources=sources, validation_fraction=0.1)
    assert set.union(*map(names, rows(corpus.train))) == {"a", "b"}


def test_all_of_it_is_in_its_validation(mixed, tmp_path):
    """A data set whose training text is its validation text leaves nothing, and says which split it is."""
    folder = snapshot(tmp_path / "set", {"train": A, "validation": A})
    with pytest.raises(UsageError, match=r"all of it is in .*/set#validation too"):
        mixed({}, corpus=files(folder))


def test_check_lists_subsets(tmp_path):
    """A card of several subsets is refused at the key that names it, before anything is read."""
    (tmp_path / "set").mkdir()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("de", "en"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    result = check(tmp_path, config='[data.sources.x]\ncorpus = "set"\n')
    assert result.exit_code == 2
    assert "run.toml:2:10: data.sources.x.corpus: " in result.output
    assert "found 2 in" in result.output
    assert "README.md: de, en. Name one, such as" in result.output


def test_check_looks_at_its_validation(tmp_path):
    """A fault in a data set's validation split, and a source without one, are found before anything runs."""
    folder = tmp_path / "set"
    snapshot(folder, {"train": A, "validation": []})
    (folder / "validation-00000.jsonl").write_text("{}\n")
    result = check(tmp_path, config='[data]\ncorpus = "set"\n')
    assert 'validation-00000.jsonl:1: expected a field "text"' in result.output
    (folder / "validation-00000.jsonl").write_text('{"text": "words"}\n')
    config = '[data.sources.a]\ncorpus = "set"\n[data.sources.b]\ncorpus = "python-docs"\n'
    result = check(tmp_path, config=config)
    assert "run.toml:4:10: data.sources.b.corpus: python-docs: expected a validation split of its own" in result.output


ONES = list("ABCDEFGHIJ")
"""Documents of one token each, in which no token has one before it."""


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_samples_of_causal_language_modelling_are_counted_by_source(mixed, weight):
    """Rows with nothing to predict are left out of each source's samples, with its weight, and counted in all."""
    texts = {"a": [*ONES, "KL", "MNO"], "b": ["pqrst"] * 3}
    options = {"weights": (weight, 1.0), "seq_len": 2, "validation_fraction": 0.0}
    masked, causal = (mixed(texts, causal=causal, **options) for causal in (False, True))
    read = masked.train.rows(np.arange(len(masked.train)))
    some = [left == right > 0 for left, right in read.segments.tolist()]
    assert 0 < some.count(True) < len(some)
    assert len(causal.train) == some.count(True)
    assert sum(source.train.samples for source in causal.sources) == len(causal.train)
    assert causal.alone == some.count(False)
    assert (masked.alone, causal.fingerprint) == (0, masked.fingerprint)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"texts": {"a": ONES}, "validation_fraction": 0.0}, r"a\.jsonl"),
        ({"texts": {"b": words("b", 50)}, "held_out": ONES}, r"held_out\.jsonl"),
        ({"texts": {"a": ONES * 10}, "validation_fraction": 0.2}, r"a\.jsonl"),
    ],
)
def test_texts_with_nothing_to_predict_are_refused(mixed, options, named):
    """Documents of one token can be trained and measured on with masks, and causally neither, which is said at once."""
    assert len(mixed(**options).train)
    with pytest.raises(UsageError, match=rf"^\S*{named}: nothing to predict with this objective"):
        mixed(**options, causal=True)


def test_a_validation_split_with_nothing_to_predict_is_refused(mixed):
    """By its share, since it has no name of its own."""
    with pytest.raises(UsageError, match=r"^the validation split \(data.validation_fraction = 0.01\): nothing to"):
        mixed({"a": [*ONES, "KLMNOPQRST"]}, causal=True, validation_fraction=0.01)
