"""Texts with gaps: what is given comes out byte for byte, whatever the tokenizer does to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stackwise_core.engine.tokenizer.tokenizer import ByteTokenizer, load_tokenizer
from stackwise_core.errors import UsageError
from stackwise_sampling.gapped_text import GappedText, Kind
from stackwise_sampling.templates import parts_of
from tests.kinds_of_tokenizers import KINDS, save_kind
from tests.tiny import TEXT

BYTES = ByteTokenizer()
TEMPLATE = "  Naïve\r\n\tthe [MASK:3] – 日本語[MASK]🙂 end \0 "
GIVEN = ("  Naïve\r\n\tthe ", " – 日本語", "🙂 end \0 ")


def save(library: Library, path) -> str:
    library.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Bytes; a byte-level BPE; one that marks spaces, as Llama's; one that drops them, as BERT's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = TEXT.read_text().splitlines()
    bpe = Library(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    marked = Library(models.BPE())
    marked.pre_tokenizer, marked.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marked.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    words = Library(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    special = ["[UNK]", "[MASK]", "[PAD]"]
    words.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    libraries = {"bpe": bpe, "marked": marked, "words": words}
    opened = {
        name: load_tokenizer(save(each, folder / f"{name}.json"), mask_token=None) for name, each in libraries.items()
    }
    return {"bytes": BYTES, **opened}


@pytest.mark.parametrize("name", ["bytes", "bpe", "marked", "words"])
def test_given_text_comes_out_byte_for_byte(tokenizers, name):
    """Around whatever fills the gaps each given part stands as it was typed."""
    tokenizer = tokenizers[name]
    text = GappedText.of(parts_of(TEMPLATE), tokenizer)
    assert int(text.missing.sum()) == 4
    rng = np.random.default_rng(0)
    ordinary = sorted(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
    for _ in range(20):
        ids = np.where(text.missing, rng.choice(ordinary, len(text.ids)), text.ids)
        whole = text.text(ids)
        assert whole.startswith(GIVEN[0])
        assert GIVEN[1] in whole
        assert whole.endswith(GIVEN[2])


@pytest.mark.parametrize("name", ["bytes", "bpe", "marked", "words"])
def test_a_gap_filled_with_its_own_tokens_reads_as_before(tokenizers, name):
    """Words are apart where they were, and joined where they were, though they were decoded by themselves."""
    tokenizer = tokenizers[name]
    sentence = "and god saw the light"
    ids = tokenizer.encode([sentence])[0][0].astype(np.int64)
    for length in range(1, len(ids)):
        text = GappedText.of(["", len(ids)], tokenizer)
        assert text.text(ids) == sentence
        prompt = tokenizer.decode(ids[:length].tolist())
        again = tokenizer.encode([prompt])[0][0]
        if np.array_equal(again, ids[:length]):  # a prompt that was cut within a word may get other tokens
            text = GappedText.of([prompt, len(ids) - length], tokenizer)
            assert text.text(np.append(again, ids[length:])) == sentence


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: load_tokenizer(str(save_kind(kind, folder)), mask_token=None) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole(kinds, kind):
    """Where a gap takes the place of some tokens of a text, those of the parts beside it are as they were."""
    tokenizer = kinds[kind]
    line = "And God said, Let there be light: and there was light in 1492 places."
    whole = tokenizer.encode_joined([line])
    apart = 0
    for first in range(1, whole.ids.size):
        for stop in range(first + 1, min(first + 6, whole.ids.size)):
            before, after = line[: whole.starts[first]], line[whole.starts[stop] :]
            kept = [*whole.ids[:first], *whole.ids[stop:]]
            if before and tokenizer.encode([before + after])[0][0].tolist() == kept:  # as if the gap hadn't been
                text = GappedText.of([before, 2, after], tokenizer)
                assert text.ids[~text.missing].tolist() == kept, (before, after)
                apart += 1
    assert apart > 3


PARTS = [("look", 1, "ing"), ("", 2, "ing the light"), (3, "ing")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", PARTS)
def test_only_the_start_of_a_text_is_treated_as_one(kinds, kind, parts):
    """A part after a gap has no mark of a beginning, and reads as it was given: "look[MASK]ing" has no space in it."""
    tokenizer = kinds[kind]
    text = GappedText.of(parts, tokenizer)
    after = text.ids[len(text.ids) - text.lengths[-1] :].tolist()
    if kind == "bert":  # which has no token for a space, but others for what follows a letter
        names = [tokenizer._tokenizer.id_to_token(id_) for id_ in after]
        assert names == (["##ing"] if parts[0] == "look" else ["in", "##g", "the", "light"][: len(names)])
    elif kind == "words":
        assert after == tokenizer.encode([parts[-1]])[0][0].tolist()
    else:
        assert tokenizer.decode_after([], after) == parts[-1]


def test_what_follows_a_dropped_character_is_not_lost(tmp_path):
    """The library misplaces tokens after a character that a model drops: parts are then tokenised one by one."""
    path = save(Library(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])), tmp_path / "t.json")
    tokenizer = load_tokenizer(path, mask_token=None)
    assert GappedText.of(["xa", 1, "b"], tokenizer).ids.tolist() == [0, tokenizer.mask_id, 1]


def test_stretches_after_a_mask_keep_their_space(kinds):
    """What is filled after a token that is still masked isn't shown as the beginning of a text."""
    for kind in ("metaspace first", "byte level, prefix space", "bert"):
        tokenizer = kinds[kind]
        text = GappedText.of(["And", 2], tokenizer)
        ids = text.ids.copy()
        ids[-1] = tokenizer.encode(["was light"])[0][0][-1]
        (*_, last) = text.stretches(ids)
        assert last.text.startswith(" "), kind


def test_a_space_that_a_tokenizer_drops_is_not_doubled(tokenizers):
    """A tokenizer that puts spaces between words itself doesn't add one to that of the prompt."""
    tokenizer = tokenizers["words"]
    text = GappedText.of(["the ", 1, " was"], tokenizer)
    ids = text.ids.copy()
    ids[text.missing] = tokenizer.encode(["light"])[0][0][:1]
    assert text.text(ids).startswith("the li")


def test_a_mask_token_that_is_given_is_no_gap(tokenizers):
    """An escaped [MASK] of a tokenizer that has such a token stays what it is."""
    text = GappedText.of(parts_of(r"god \[MASK] the [MASK]"), tokenizers["words"])
    assert (text.ids == tokenizers["words"].mask_id).sum() == 2
    assert text.missing.sum() == 1
    assert text.text(text.ids).startswith("god [MASK] the ")


def test_stretches_say_what_is_masked_filled_and_new():
    """Stretches follow one another, and together they have all tokens."""
    text = GappedText.of(["ab", 5, "c"], BYTES)
    ids = text.ids.copy()
    ids[[2, 3, 5]] = list(b"xyz")
    found = [(each.text, each.kind, each.tokens) for each in text.stretches(ids, np.array([3]))]
    assert found == [
        ("ab", Kind.GIVEN, 2),
        ("x", Kind.FILLED, 1),
        ("y", Kind.NEW, 1),
        ("", Kind.MASKED, 1),
        ("z", Kind.FILLED, 1),
        ("", Kind.MASKED, 1),
        ("c", Kind.GIVEN, 1),
    ]


def test_what_a_prompt_leaves():
    """A length that isn't given fills what is seen at once, or half of it."""
    lengths = [int(GappedText.after("x" * given, None, BYTES, 10).missing.sum()) for given in (0, 3, 5, 9, 30)]
    assert lengths == [10, 7, 5, 5, 5]
    assert int(GappedText.after("x", 40, BYTES, 10).missing.sum()) == 40


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("[MASK]", ("", 1, "")),
        ("The [MASK:20] sat", ("The ", 20, " sat")),
        ("[MASK][MASK:2]", ("", 1, "", 2, "")),
        (r"\[MASK] [MASK]", ("[MASK] ", 1, "")),
        (r"\[MASK:3] [MASK:3]", ("[MASK:3] ", 3, "")),
        (r"\[MASK:x [MASK]", ("[MASK:x ", 1, "")),
        (r"\\[MASK]", ("\\", 1, "")),
        (r"\\\[MASK] [MASK]", (r"\[MASK] ", 1, "")),
        (r"C:\new [MASK]", (r"C:\new ", 1, "")),
        ("[MASKED] [mask] [MASK]", ("[MASKED] [mask] ", 1, "")),
    ],
)
def test_templates(template, parts):
    """Gaps, and the backslashes that make text of them."""
    assert parts_of(template) == parts


@given(text=st.text(alphabet="a\\[MASK:1]\n", max_size=30))
def test_escaped_text_is_that_text(text):
    """Any text may be given: backslashes before [MASK are doubled, and one is put before it."""
    escaped, rest = "", text
    while "[MASK" in rest:
        before, _, rest = rest.partition("[MASK")
        slashes = len(before) - len(before.rstrip("\\"))
        word = rest[:1].isalnum() or rest[:1] == "_"
        escaped += before + ("" if word else "\\" * (slashes + 1)) + "[MASK"
    assert parts_of(f"{escaped}{rest}\n[MASK:2]") == (f"{text}\n", 2, "")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no gap", "a.txt: expected a text with gaps"),
        ("[mask:3]", "a.txt: expected a text with gaps"),
        ("one\ntwo [MASK:x] three", "a.txt:2:5: expected [MASK] or [MASK:20], of 1 to 1000000 tokens, found '[MASK:x]"),
        ("[MASK:0]", "a.txt:1:1: expected"),
        ("[MASK:9999999]", "of 1 to 1000000 tokens"),
        ("[MASK", "a.txt:1:1: expected"),
        ("[MASK: 3]", "a.txt:1:1: expected"),
        (r"\\[MASK:-1]", "a.txt:1:3: expected"),
    ],
)
def test_mistakes_in_templates(template, message):
    """The place, what stands there, and what should."""
    with pytest.raises(UsageError) as error:
        parts_of(template, "a.txt")
    assert message in str(error.value)


def test_a_length_beyond_reason_is_refused():
    """Before memory for it is asked for."""
    with pytest.raises(UsageError, match="length: expected at most 1000000 tokens, found 2000000000"):
        GappedText.after("The ", 2_000_000_000, BYTES, 128)
