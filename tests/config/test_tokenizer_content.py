"""Contents of a tokenizer.json, read from files that the library itself wrote."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from stackwise_core.config.tokenizer_content import DeterministicContent, deterministic, special_tokens, unknown_token
from stackwise_core.engine.tokenizer import tokenizer as tokenizer_module
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import UsageError

LETTERS = {"a": 0, "b": 1, "c": 2, " ": 3, "ab": 4, "abc": 5}
MERGES = [("a", "b"), ("ab", "c")]


def bpe(vocabulary=LETTERS, **options):
    return Library(models.BPE(vocabulary, MERGES, **options))


def content_of(library):
    return json.loads(library.to_str())


def opened(library, path, **changes):
    content = content_of(library)
    content["model"] |= changes
    path.write_text(json.dumps(content))
    return load_tokenizer(str(path), mask_token=None)


def widths(tokenizer, text):
    joined = tokenizer.encode_joined([text])
    return joined.ids.tolist(), joined.widths.tolist()


@pytest.mark.parametrize("dropout", [0.01, 0.5, 1.0])
def test_dropout_is_off(tmp_path, dropout):
    """A text has the ids that it has without dropout, each time, and a note says so."""
    tokenizer = opened(bpe(dropout=dropout), tmp_path / "t.json")
    plain = opened(bpe(), tmp_path / "plain.json")
    text = "abc " * 50
    assert len({tuple(tokenizer.encode([text])[0][0].tolist()) for _ in range(20)}) == 1
    assert tokenizer.encode([text])[0][0].tolist() == plain.encode([text])[0][0].tolist() == [5, 3] * 50
    (note,) = tokenizer.notes
    assert f"switched off, so that a text always has the same ids: model.dropout = {dropout}" in note
    assert plain.notes == ()


def test_what_is_switched_off_is_in_the_fingerprint(tmp_path, monkeypatch):
    """Tokens that were made with dropout aren't taken for those without it."""
    path = tmp_path / "t.json"
    off = opened(bpe(dropout=0.5), path).fingerprint
    monkeypatch.setattr(tokenizer_module, "deterministic", lambda content: DeterministicContent(content, (), ()))
    monkeypatch.setattr(tokenizer_module.JsonTokenizer, "_refuse_chance", lambda self: None)
    assert load_tokenizer(str(path), mask_token=None).fingerprint != off


def test_settings_of_sampling_truncation_and_padding():
    """Each is taken out, wherever the model stands, and named; settings that do nothing aren't."""
    content = content_of(bpe())
    content |= {"truncation": {"max_length": 5}, "padding": {"strategy": "BatchLongest"}, "post_processor": {"a": 1}}
    content["model"] |= {"dropout": 0.0, "alpha": 0.2, "nbest_size": -1}
    fixed = deterministic(content)
    assert [line.split(" (")[0] for line in fixed.sampling] == ["model.alpha = 0.2", "model.nbest_size = -1"]
    assert fixed.shaping == ("truncation", "padding")
    assert [fixed.content[name] for name in ("truncation", "padding", "post_processor")] == [None] * 3
    assert (fixed.content["model"]["alpha"], fixed.content["model"]["nbest_size"]) == (None, None)
    assert deterministic(fixed.content) == DeterministicContent(fixed.content, (), ())


def test_chance_that_is_not_known_is_refused(tmp_path, monkeypatch):
    """Where something else samples, equal texts show it before anything is done."""
    monkeypatch.setattr(tokenizer_module, "deterministic", lambda content: DeterministicContent(content, (), ()))
    with pytest.raises(UsageError, match=r"t.json: it gives the same text other ids each time"):
        opened(bpe(dropout=0.5), tmp_path / "t.json")


WORDS = {"[UNK]": 0, "the": 1, "<unk>": 2}


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (models.WordLevel(WORDS, unk_token="[UNK]"), "[UNK]"),
        (models.WordPiece(WORDS, unk_token="[UNK]"), "[UNK]"),
        (models.BPE(WORDS, [], unk_token="<unk>"), "<unk>"),
        (models.BPE(WORDS, []), None),
        (models.Unigram([(word, -1.0) for word in WORDS], unk_id=2), "<unk>"),
        (models.Unigram([(word, -1.0) for word in WORDS]), None),
    ],
    ids=["words", "pieces", "bpe", "bpe without", "unigram", "unigram without"],
)
def test_the_unknown_token_is_special(tmp_path, model, unknown):
    """Each model names it in its own way, and not among the added tokens."""
    library = Library(model)
    assert content_of(library)["added_tokens"] == []
    assert unknown_token(content_of(library)) == unknown
    tokenizer = opened(library, tmp_path / "t.json")
    expected = set() if unknown is None else {WORDS[unknown]}
    assert tokenizer.unknown_ids == expected
    assert tokenizer.special_ids == {tokenizer.mask_id, tokenizer.pad_id} | expected


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing(("</s>", 1), ("<s>", 0)),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.TemplateProcessing(
            single="$A <end>", special_tokens=[{"id": "<end>", "ids": [0, 1], "tokens": ["<s>", "</s>"]}]
        ),
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
            ]
        ),
    ],
    ids=["bert", "roberta", "template", "sequence"],
)
def test_special_tokens_of_post_processors(tmp_path, processor):
    """What is put around a text is no text, though it isn't put there."""
    library = Library(models.WordLevel({"<s>": 0, "</s>": 1, "the": 2, "?": 3}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.post_processor = processor
    tokenizer = opened(library, tmp_path / "t.json")
    assert tokenizer.special_ids == {0, 1, 3, tokenizer.mask_id, tokenizer.pad_id}
    assert tokenizer.encode(["the"])[0][0].tolist() == [2]


def test_special_tokens_of_padding_decoders_and_added_ones():
    """Padding and a CTC decoder's blank are special too; added tokens are where they are called so."""
    library = bpe()
    library.enable_padding(pad_token="<p>")
    library.decoder = decoders.Sequence([decoders.Fuse(), decoders.CTC(pad_token="<blank>")])
    library.add_tokens([AddedToken("plain"), AddedToken("<end>", special=True)])
    assert special_tokens(content_of(library)) == {"<p>", "<blank>", "<end>"}


def test_a_special_token_that_is_no_token_is_none(tmp_path):
    """A post-processor or padding may name what the vocabulary hasn't."""
    library = bpe()
    library.enable_padding(pad_token="<p>")
    tokenizer = opened(library, tmp_path / "t.json")
    assert tokenizer.special_ids == {6, 7}


def test_tokens_of_byte_fallback_are_text(tmp_path):
    """They stand for bytes of text, each for one."""
    vocabulary = {"<unk>": 0, "a": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for model in (
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True),
        models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0, byte_fallback=True),
    ):
        tokenizer = opened(Library(model), tmp_path / "t.json")
        assert tokenizer.special_ids == {0, tokenizer.mask_id, tokenizer.pad_id}
        assert tokenizer.unknown_ids == set()
        ids, counted = widths(tokenizer, "aé🙂")
        assert ids == [1, *(2 + byte for byte in "é🙂".encode())]
        assert counted == [1] * 7


def test_a_separator_is_not_unknown(tmp_path):
    """A byte-level tokenizer has a token for any text: the one that it calls unknown is only found where it stands."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(["<end>", *alphabet])}
    for known, unknown in ((vocabulary, set()), (dict(list(vocabulary.items())[:-1]), {0})):
        library = Library(models.BPE(known, [], unk_token="<end>"))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.add_special_tokens(["<end>"])
        tokenizer = opened(library, tmp_path / "t.json")
        assert tokenizer.encode(["a<end>"])[0][0].tolist() == [vocabulary["a"], 0]
        assert tokenizer.unknown_ids == unknown


CASES = {
    "characters that a model lacks": (bpe(), "ab✓✓✓c ✓a", [5, 3, 0], [3, 1, 1]),
    "white space between words": (
        Library(models.WordLevel({"a": 0, "é": 1, "?": 2}, unk_token="?")),
        "  é   a\n\n",
        [1, 0],
        [2, 1],
    ),
    "unknown words": (Library(models.WordLevel({"a": 0, "?": 1}, unk_token="?")), "日本 a", [1, 0], [6, 1]),
    "characters within a token": (bpe(), "axxxxb c", [4, 3, 2], [2, 1, 1]),
    "spaces that become one": (bpe(LETTERS | {"▁": 6}), "ab      c", [4, 6, 2], [2, 1, 1]),
    "a mark before the text": (bpe(LETTERS | {"▁": 6}), "ab c", [6, 4, 6, 2], [1, 1, 1, 1]),
    "ligatures": (
        bpe({"f": 0, "i": 1, "m": 2, "k": 3, "ab": 4, "abc": 5, "a": 6, "b": 7, "c": 8}),
        "ﬁ㎞",
        [0, 1, 3, 2],
        [1, 1, 1, 1],
    ),
    "a subword's prefix": (
        Library(models.WordPiece({"a": 0, "##b": 1, "?": 2}, unk_token="?")),
        "ab b",
        [0, 1, 2],
        [1, 1, 1],
    ),
}
CASES["white space between words"][0].pre_tokenizer = pre_tokenizers.WhitespaceSplit()
CASES["unknown words"][0].pre_tokenizer = pre_tokenizers.WhitespaceSplit()
CASES["characters within a token"][0].normalizer = normalizers.Replace("x", "")
CASES["spaces that become one"][0].normalizer = normalizers.Replace(Regex(" +"), "▁")
CASES["spaces that become one"][0].decoder = decoders.Metaspace()
CASES["a mark before the text"][0].pre_tokenizer = pre_tokenizers.Metaspace()
CASES["ligatures"][0].normalizer = normalizers.NFKC()
CASES["a subword's prefix"][0].pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize("case", CASES)
def test_bytes_that_tokens_stand_for_by_hand(tmp_path, case):
    """No token counts for text that it doesn't tell, nor for more than it writes itself."""
    library, text, ids, counted = CASES[case]
    assert widths(opened(library, tmp_path / "t.json"), text) == (ids, counted)


def test_every_byte_is_counted_once_where_none_is_lost(tmp_path):
    """A byte-level tokenizer's tokens stand for all of a text, however its characters are cut."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(alphabet, []))
    library.post_processor = processors.ByteLevel(trim_offsets=True)
    for prefix in (False, True):
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        text = "naïve – 日本語 🙂 the\r\n\tend\0"
        joined = opened(library, tmp_path / "t.json").encode_joined([text, "", text])
        assert joined.widths.sum() == 2 * len(text.encode())
        assert joined.sizes.tolist() == [len(text.encode()), 0, len(text.encode())]
        assert np.unique(joined.widths).tolist() == ([0, 1] if prefix else [1])
