"""Division into training and validation, and packing into rows, against a slow computation from the definition."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from stackwise_core.engine.text import packing, token_stream
from stackwise_core.engine.text.packing import pack
from stackwise_core.engine.text.token_stream import Coverage, Text
from stackwise_core.engine.tokenizer import cutting
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Document


def by_definition(documents, special, seq_len, fraction, pad):
    """Both splits as lists of (tokens, segments) rows, token by token, in plain Python.

    ``documents`` are lists of ids.
    """
    total = sum(map(len, documents))
    rows_a_passage = min(16, int(fraction * total / 4) // seq_len) or 1
    passages = []  # (document, ids)
    for number, ids in enumerate(documents):
        for start in range(0, len(ids), rows_a_passage * seq_len):
            passages.append((number, ids[start : start + rows_a_passage * seq_len]))
    hashes = [xxh3_128_digest(struct.pack(f"<{len(ids)}H", *ids)) for _, ids in passages]
    validation, taken = set(), 0
    for digest in sorted(set(hashes)):
        if taken >= fraction * total:
            break
        validation.add(digest)
        taken += sum(len(ids) for (_, ids), other in zip(passages, hashes, strict=True) if other == digest)
    return [
        rows_by_definition(
            [
                (i, d, ids)
                for i, ((d, ids), h) in enumerate(zip(passages, hashes, strict=True))
                if (h in validation) == side
            ],
            special,
            seq_len,
            pad,
        )
        for side in (False, True)
    ]


def rows_by_definition(passages, special, seq_len, pad):
    stream, segment, before = [], 0, None
    for index, document, ids in passages:
        if before != (index - 1, document):
            segment += 1
        before = (index, document)
        stream += [(token, segment) for token in ids]
    while len(stream) % seq_len:
        stream.append((pad, None))
    rows = []
    for start in range(0, len(stream), seq_len):
        row = stream[start : start + seq_len]
        order, segments = [], []
        for token, number in row:
            if token not in special and number not in order:
                order.append(number)
            segments.append(0 if token in special else 1 + order.index(number))
        if any(segments):
            rows.append(([token for token, _ in row], segments))
    return rows


def read_back(split):
    rows = split.rows(np.arange(len(split)))
    return list(zip(rows.tokens.tolist(), rows.segments.tolist(), strict=True))


texts = st.lists(st.text(st.sampled_from("ab \né🙂"), max_size=120), min_size=1, max_size=6)
relaxed = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
    deadline=None,
    max_examples=60,
)


@pytest.mark.slow
@relaxed
@given(
    texts=texts, copies=st.integers(1, 2), seq_len=st.integers(2, 9), fraction=st.sampled_from([0.0, 0.05, 0.3, 0.5])
)
def test_rows_are_as_defined(prepared, texts, copies, seq_len, fraction):
    """Rows, segments, counts and sides of random documents are what the definition says."""
    texts = texts * copies
    try:
        corpus = prepared(texts, seq_len=seq_len, validation_fraction=fraction)
    except UsageError:
        assume(False)
    documents = [list(text.encode()) for text in texts if text]
    train, validation = by_definition(documents, {256, 257}, seq_len, fraction, 257)
    assert read_back(corpus.train) == train
    assert read_back(corpus.validation) == validation
    size = sum(map(len, documents))
    assert corpus.train.bytes + corpus.validation.bytes == corpus.train.tokens + corpus.validation.tokens == size
    assert corpus.documents == len(documents)


@pytest.mark.slow
@relaxed
@given(
    pieces=st.lists(
        st.lists(st.sampled_from(["[MASK]", "[PAD]", "<|end|>", "the ", "x", "é", "statement\n"]), max_size=30),
        min_size=1,
        max_size=4,
    ),
    seq_len=st.integers(2, 6),
)
def test_rows_with_special_tokens_are_as_defined(prepared, masked_bpe, pieces, seq_len):
    """Special tokens in the text belong to no segment, don't count, and don't break one up."""
    texts = ["".join(words) for words in pieces]
    try:
        corpus = prepared(texts, masked_bpe, seq_len=seq_len, validation_fraction=0.3)
    except UsageError:
        assume(False)
    tokenizer = load_tokenizer(str(masked_bpe), mask_token=None)
    documents = [ids.tolist() for ids, _ in tokenizer.encode(texts)]
    train, validation = by_definition(documents, {0, 1, 2}, seq_len, 0.3, 0)
    assert read_back(corpus.train) == train
    assert read_back(corpus.validation) == validation
    kept = [word for words in pieces for word in words if word not in ("[MASK]", "[PAD]", "<|end|>")]
    assert corpus.train.bytes + corpus.validation.bytes == len("".join(kept).encode())
    scored = sum(token > 2 for ids in documents for token in ids)
    assert corpus.train.tokens + corpus.validation.tokens == scored


def test_segments_by_hand(prepared):
    """Two documents and the end of a third: numbers from 1 in each row, and 0 at the padding only."""
    corpus = prepared(["abcde", "fg", "hijk"], validation_fraction=0.0, seq_len=8)
    rows = corpus.train.rows(np.arange(2))
    assert rows.tokens.tolist() == [list(b"abcdefgh"), [*b"ijk", *[257] * 5]]
    assert rows.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 3], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert rows.scorable.tolist() == [[True] * 8, [True] * 3 + [False] * 5]
    assert rows.tokens.dtype == rows.segments.dtype == np.int32


def test_a_gap_that_went_to_validation_ends_a_segment(prepared):
    """Passages of one document on either side of one that is in validation don't see each other."""
    text = "".join(chr(33 + i % 90) * 4 for i in range(60))  # passages of 4, which no two rows of 4 can mix
    corpus = prepared([text], seq_len=4, validation_fraction=0.1)
    together = prepared([text], seq_len=8, validation_fraction=0.0)
    assert set(np.unique(together.train.rows(np.arange(30)).segments)) == {1}
    starts = corpus.train._segment_starts
    runs = text_runs(text, corpus.train)
    assert len(runs) > 1
    assert starts.tolist() == np.cumsum([0, *map(len, runs)])[:-1].tolist()


def text_runs(text, split):
    """The longest stretches of the text that a split's stream is made of."""
    stream = "".join(map(chr, split.rows(np.arange(len(split))).tokens.ravel()))
    runs = []
    while stream:
        length = next(n for n in range(len(stream), 0, -1) if stream[:n] in text)
        runs.append(stream[:length])
        stream = stream[length:]
    return runs


def test_rows_without_a_scorable_token_are_left_out(prepared, masked_bpe):
    """A row of nothing but special tokens isn't a sample, and its neighbours keep their documents."""
    corpus = prepared(["x" * 6 + "[MASK]" * 9 + "x", "x" * 5], masked_bpe, seq_len=4, validation_fraction=0.0)
    rows = corpus.train.rows(np.arange(len(corpus.train)))
    assert rows.segments.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert rows.tokens[1].tolist()[2:] == [1, 1]
    assert (rows.tokens[2].tolist()[:3], rows.tokens[4].tolist()[1:]) == ([1, 1, 1], [0, 0, 0])
    assert (corpus.train.tokens, corpus.train.bytes) == (12, 12)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
def test_validation_has_its_share(prepared, fraction):
    """Validation gets its fraction, over by a quarter of it at most, and both sides together are all the text."""
    rng = np.random.default_rng(3)
    texts = ["".join(map(chr, rng.integers(32, 127, size))) for size in rng.integers(1, 3000, 30)]
    corpus = prepared(texts, seq_len=4, validation_fraction=fraction)
    total = sum(map(len, texts))
    assert fraction * total <= corpus.validation.tokens <= 1.25 * fraction * total
    assert corpus.train.tokens + corpus.validation.tokens == total


def test_validation_text_is_never_in_training(prepared):
    """Random text on one side never occurs on the other, though every document is in the corpus three times."""
    rng = np.random.default_rng(5)
    texts = ["".join(map(chr, rng.integers(32, 127, 700))) for _ in range(12)] * 3
    corpus = prepared(texts, seq_len=16, validation_fraction=0.2)

    def ngrams(split):
        rows = split.rows(np.arange(len(split)))
        for tokens, segments in zip(rows.tokens, rows.segments, strict=True):
            for start in range(9):
                if segments[start] == segments[start + 7] > 0:
                    yield tuple(tokens[start : start + 8])

    train, validation = set(ngrams(corpus.train)), set(ngrams(corpus.validation))
    assert len(validation) > 300
    assert not train & validation


def test_sides_follow_the_content(prepared):
    """Another order of the same documents gives each side the same text, in the new order."""
    texts = [f"{number} " * 40 for number in range(30)]
    one, other = prepared(texts, validation_fraction=0.3), prepared(texts[::-1], validation_fraction=0.3)
    for name in ("train", "validation"):
        streams = [
            sorted(np.ravel(getattr(c, name).rows(np.arange(len(getattr(c, name)))).tokens)) for c in (one, other)
        ]
        assert streams[0] == streams[1]
    assert one.fingerprint != other.fingerprint


def test_batches_and_pieces_leave_no_trace(prepared, plain_bpe, monkeypatch):
    """Cutting long texts and handling tokens in blocks changes no token, and counts every byte once."""
    from pydoc_data.topics import topics

    texts = [topics["if"], topics["while"], "é🙂" * 500, topics["lambda"]]
    whole = {tokenizer: prepared(texts, tokenizer, seq_len=32) for tokenizer in ("bytes", plain_bpe)}
    kept = {key: (read_back(corpus.train), read_back(corpus.validation)) for key, corpus in whole.items()}
    monkeypatch.setattr(cutting, "PIECE", 400)
    monkeypatch.setattr(cutting, "OVERLAP", 100)
    monkeypatch.setattr(token_stream, "BATCH", 1000)
    monkeypatch.setattr(packing, "BATCH", 1000)
    for key, corpus in whole.items():
        for file in corpus.directory.iterdir():
            file.unlink()
        again = prepared(texts, key, seq_len=32)
        assert (read_back(again.train), read_back(again.validation)) == kept[key]
        assert again.train.bytes + again.validation.bytes == len("".join(texts).encode())


def test_bytes_that_no_token_stands_for(tmp_path):
    """What a tokenizer drops between and around tokens counts with none of them, so that bits a byte stay a bound."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"[UNK]": 0, "é": 1, "b": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(str(tmp_path / "t.json"), mask_token=None)
    (tmp_path / "out").mkdir()
    texts = ["  é  b\n", "   ", "b "]
    packed = pack(
        [Text([Document("", [text]) for text in texts])],
        tokenizer,
        tmp_path / "out",
        seq_len=2,
        validation_fraction=0.0,
        progress=None,
    )
    assert packed.all_tokens == packed.train.tokens == 3
    assert packed.train.bytes == len("ébb".encode())
    assert packed.coverage == Coverage(bytes=len("".join(texts).encode()), unknown=0, dropped=9)
    assert np.fromfile(tmp_path / "out" / "train.segments", "<i8").tolist() == [0, 2]


def test_unknown_text_is_neither_scored_nor_counted(tmp_path):
    """The bytes of unknown words are those of no neighbour, and a row of nothing else isn't a sample."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"?": 0, "ab": 1, "c": 2}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(str(tmp_path / "t.json"), mask_token=None)
    (tmp_path / "out").mkdir()
    text = Text([Document("", ["собака ab c дом xyz c"])])
    packed = pack([text], tokenizer, tmp_path / "out", seq_len=2, validation_fraction=0.0)
    assert (packed.all_tokens, packed.train.tokens, packed.train.rows) == (6, 3, 3)
    assert packed.train.bytes == len("abcc")
    assert packed.coverage == Coverage(bytes=12 + 2 + 1 + 6 + 3 + 1 + 5, unknown=12 + 6 + 3, dropped=5)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "size"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, words, size):
    """A vocabulary of 65,536 is stored in two bytes an id, a larger one in four, without losing the highest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{number}": number for number in range(words - 2)}  # mask and pad are added
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(str(tmp_path / "t.json"), mask_token=None)
    assert tokenizer.vocab_size == words
    (tmp_path / "out").mkdir()
    text = f"w0 w{words - 3} w1"
    pack([Text([Document("", [text])])], tokenizer, tmp_path / "out", seq_len=2, validation_fraction=0.0, progress=None)
    ids = np.fromfile(tmp_path / "out" / "train.tokens", f"<u{size}")
    assert ids.tolist() == [0, words - 3, 1, tokenizer.pad_id]
