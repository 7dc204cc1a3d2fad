"""Both kinds of tokenizer against the tokenizers library and against plain bytes."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import UsageError

MIXED = "naïve – 日本語 🙂 the\r\n\tend\0"


def open_json(path, mask_token=None):
    return load_tokenizer(str(path), mask_token=mask_token)


def complaint(path, mask_token=None):
    with pytest.raises(UsageError) as caught:
        open_json(path, mask_token)
    return str(caught.value)


def save_words(path, words, special=()):
    """A tokenizer.json of whole words with [UNK], ids in the order given."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    library = Library(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[UNK]", *special])
    library.save(str(path))
    return path


def test_bytes_are_their_own_ids():
    """With "bytes" ids are UTF-8, offsets count up, mask and pad come after."""
    tokenizer = load_tokenizer("bytes", mask_token=None)
    (ids, starts), (empty, no_starts) = tokenizer.encode([MIXED, ""])
    assert bytes(ids.tolist()) == MIXED.encode()
    assert starts.tolist() == list(range(len(MIXED.encode())))
    assert empty.size == no_starts.size == 0
    assert ids.dtype == starts.dtype == np.int32
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.pad_id) == (258, 256, 257)
    assert tokenizer.special_ids == {256, 257}
    assert len(tokenizer.fingerprint) == 16


def test_bytes_decode_shows_masks_and_leaves_padding_out():
    """A mask is [MASK], a pad nothing, and bytes that are no UTF-8 are U+FFFD."""
    tokenizer = load_tokenizer("bytes", mask_token=None)
    assert tokenizer.decode([104, 256, 256, 195, 169, 195, 257, 257]) == "h[MASK][MASK]é\ufffd"
    assert tokenizer.decode(np.array([104, 105])) == "hi"


def test_bytes_has_its_own_mask():
    """A mask token named beside "bytes" is refused."""
    with pytest.raises(UsageError, match=r'data\.mask_token = "\[MASK\]": expected none'):
        load_tokenizer("bytes", mask_token="[MASK]")


@given(st.text())
def test_bytes_round_trip(text):
    """Any text comes back from its bytes."""
    tokenizer = load_tokenizer("bytes", mask_token=None)
    assert tokenizer.decode(tokenizer.encode([text])[0][0]) == text


def test_json_without_a_mask_grows(plain_bpe):
    """A vocabulary without mask and pad gets two ids, which no text encodes to."""
    tokenizer = open_json(plain_bpe)
    size = Library.from_file(str(plain_bpe)).get_vocab_size()
    assert (tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size) == (size, size + 1, size + 2)
    assert tokenizer.special_ids == {size, size + 1}
    assert max(tokenizer.encode(["[MASK] [PAD]"])[0][0]) < size


def test_json_with_a_mask_keeps_it(masked_bpe):
    """Mask and pad of the file are found, and all its special tokens are known as such."""
    tokenizer = open_json(masked_bpe)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 1)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.vocab_size == Library.from_file(str(masked_bpe)).get_vocab_size()
    assert open_json(masked_bpe, "<|end|>").mask_id == 2


@pytest.mark.parametrize(
    ("special", "mask", "pad"),
    [
        (["<mask>", "<pad>"], "<mask>", "<pad>"),
        (["<|mask|>", "<|pad|>"], "<|mask|>", "<|pad|>"),
        (["<mask>", "[MASK]"], "[MASK]", None),
    ],
)
def test_usual_mask_and_pad_tokens(tmp_path, special, mask, pad):
    """Usual names are found without being told, [MASK] first."""
    path = save_words(tmp_path / "tokenizer.json", ["a", *special], special)
    vocabulary = Library.from_file(str(path)).get_vocab()
    tokenizer = open_json(path)
    assert tokenizer.mask_id == vocabulary[mask]
    assert tokenizer.pad_id == (vocabulary[pad] if pad else len(vocabulary))


def test_ids_that_are_special_beside_those_of_the_file(tmp_path):
    """Given mask and padding are taken, the others are special too; all of it decides the fingerprint."""
    path = save_words(tmp_path / "t.json", ["a", "b", "[MASK]"], ["[MASK]"])
    given = load_tokenizer(str(path), mask_token=None, special_ids={"mask": 6, "pad": 5, "eos": 2})
    assert (given.mask_id, given.pad_id, given.vocab_size) == (6, 5, 7)
    assert given.special_ids == {0, 2, 3, 5, 6}
    assert given.decode([1, 6, 5, 1]) == "a[MASK] a"
    same = load_tokenizer(str(path), mask_token=None, special_ids={"mask": 3})
    assert same.fingerprint == open_json(path).fingerprint
    others = ({"mask": 6}, {"mask": 6, "pad": 5}, {"eos": 2}, {"eos": 1})
    prints = {load_tokenizer(str(path), mask_token=None, special_ids=each).fingerprint for each in others}
    assert len(prints | {same.fingerprint}) == 5
    with pytest.raises(UsageError, match=r't\.json: data\.mask_token = "b" has the id 2, and data\.special_ids\.mask'):
        load_tokenizer(str(path), mask_token="b", special_ids={"mask": 6})
    with pytest.raises(UsageError, match=r"data\.special_ids: expected none"):
        load_tokenizer("bytes", mask_token=None, special_ids={"mask": 6})


def test_ids_that_stand_for_no_text(tmp_path):
    """Special ones, gaps, and rows beyond the last; of bytes as well."""
    library = Library(models.WordLevel({"[UNK]": 0, "a": 3}, unk_token="[UNK]"))
    library.save(str(tmp_path / "t.json"))
    assert open_json(tmp_path / "t.json").wordless_ids(8) == {0, 1, 2, 4, 5, 6, 7}
    assert load_tokenizer("bytes", mask_token=None).wordless_ids(260) == {256, 257, 258, 259}


def test_pad_is_never_the_mask(tmp_path):
    """Where the mask is what usually pads, padding gets an id of its own."""
    tokenizer = open_json(save_words(tmp_path / "t.json", ["a", "<pad>"], ["<pad>"]), "<pad>")
    assert tokenizer.mask_id == 2
    assert tokenizer.pad_id == 3


def test_ids_with_gaps(tmp_path):
    """Added ids come after the highest id, not after the count."""
    library = Library(models.WordLevel({"[UNK]": 0, "a": 9}, unk_token="[UNK]"))
    library.save(str(tmp_path / "t.json"))
    tokenizer = open_json(tmp_path / "t.json")
    assert (tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size) == (10, 11, 12)


def test_json_encodes_as_the_library_does(masked_bpe):
    """Ids are the library's own, untruncated and unpadded although the file asks for both."""
    library = Library.from_file(str(masked_bpe))
    library.no_truncation()
    library.no_padding()
    texts = [MIXED, "", "the statement " * 40]
    encoded = open_json(masked_bpe).encode(texts)
    assert [ids.tolist() for ids, _ in encoded] == [library.encode(text).ids for text in texts]


def test_no_special_tokens_are_added(tmp_path):
    """A post-processor that wraps a text in special tokens isn't asked."""
    from tokenizers.processors import TemplateProcessing

    path = save_words(tmp_path / "t.json", ["a", "[CLS]"], ["[CLS]"])
    library = Library.from_file(str(path))
    library.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    library.save(str(path))
    assert library.encode("a").ids == [2, 1]
    assert open_json(path).encode(["a"])[0][0].tolist() == [1]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.text(), max_size=4))
def test_json_round_trip_and_offsets(plain_bpe, texts):
    """A byte-level BPE gives any text back, and each token's bytes lie where its offset says."""
    tokenizer = open_json(plain_bpe)
    for text, (ids, starts) in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert (np.diff(starts) >= 0).all()
        raw = text.encode()
        characters = {0, len(raw)} | {len(text[:end].encode()) for end in range(len(text))}
        assert set(starts.tolist()) <= characters
        for start, stop in itertools.pairwise([*starts, len(raw)]):
            chunk = [i for i, s in zip(ids, starts, strict=True) if s == start]
            if stop > start:
                assert tokenizer.decode(chunk) == raw[start:stop].decode()


def test_offsets_by_hand(tmp_path):
    """Offsets count UTF-8 bytes, of two, three and four to a character."""
    path = save_words(tmp_path / "t.json", ["é", "日本", "🙂", "x"])
    ids, starts = open_json(path).encode(["é 日本 🙂 x"])[0]
    assert ids.tolist() == [1, 2, 3, 4]
    assert starts.tolist() == [0, 3, 10, 15]


def test_offsets_never_fall(tmp_path):
    """Offsets stay in order and in range with a normalizer that rewrites the text."""
    library = Library(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("e", -1.0), ("s", -2.0)], unk_id=0))
    library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Prepend("▁"), normalizers.Lowercase()])
    library.decoder = decoders.Metaspace()
    library.save(str(tmp_path / "t.json"))
    text = "ÉèSſ ﬁ é"
    ids, starts = open_json(tmp_path / "t.json").encode([text])[0]
    assert ids.size == starts.size > 0
    assert (np.diff(starts) >= 0).all()
    assert starts[0] >= 0
    assert starts[-1] < len(text.encode())


def test_json_decode(masked_bpe, plain_bpe):
    """The file's own mask or an added one is shown, other special tokens too, padding isn't."""
    text = "the [MASK] statement<|end|>"
    tokenizer = open_json(masked_bpe)
    ids = tokenizer.encode([text])[0][0]
    assert {1, 2} <= set(ids.tolist())
    assert tokenizer.decode([*ids, tokenizer.pad_id]) == text
    grown = open_json(plain_bpe)
    ids = grown.encode(["the "])[0][0].tolist()
    assert grown.decode([*ids, grown.mask_id, grown.mask_id, *ids, grown.pad_id]) == "the [MASK][MASK]the "


def test_fingerprint_follows_what_decides_ids(tmp_path, masked_bpe, plain_bpe):
    """Fingerprints differ by file and by mask, and not by the file's name."""
    copy = tmp_path / "copy.json"
    copy.write_bytes(masked_bpe.read_bytes())
    assert open_json(copy).fingerprint == open_json(masked_bpe).fingerprint
    others = {
        open_json(masked_bpe).fingerprint,
        open_json(masked_bpe, "<|end|>").fingerprint,
        open_json(plain_bpe).fingerprint,
        load_tokenizer("bytes", mask_token=None).fingerprint,
    }
    assert len(others) == 4


def test_missing_file(tmp_path, masked_bpe):
    """A path that isn't there names the nearest, or the built-in tokenizer."""
    folder = masked_bpe.parent
    assert complaint(folder / "tokeniser.json") == (
        f"{folder}/tokeniser.json: expected a tokenizer.json, but nothing is there; "
        f"the nearest name is {folder}/tokenizer.json"
    )
    assert complaint(tmp_path / "byte").endswith('nothing is there; the built-in tokenizer is called "bytes"')
    assert complaint(tmp_path / "no" / "x.json").endswith("x.json: expected a tokenizer.json, but nothing is there")


def test_directory_in_place_of_file(tmp_path, masked_bpe):
    """A directory is pointed out, with the tokenizer.json in it."""
    assert complaint(tmp_path) == f"{tmp_path}: expected the path of a tokenizer.json, found a directory"
    assert complaint(masked_bpe.parent).endswith(f"found a directory; the nearest name is {masked_bpe}")


def test_not_a_tokenizer(tmp_path):
    """Bad JSON is located, other JSON gets the library's reason, a binary file is called that."""
    path = tmp_path / "t.json"
    path.write_text('{\n "model": x')
    assert complaint(path) == f"{path}:2:11: expected a tokenizer.json, found bad JSON: Expecting value"
    path.write_text(json.dumps({"version": "1.0"}))
    assert complaint(path).startswith(
        f"{path}: expected a tokenizer.json as the tokenizers library writes it, found other JSON: "
    )
    path.write_bytes(b"\x80\x04\x95\xff")
    assert complaint(path).startswith(f"{path}: expected a tokenizer.json, found no text at all: ")


def test_unknown_mask_token(masked_bpe, plain_bpe):
    """A mask token that isn't there names the nearest one, special tokens first, whatever the case."""
    assert complaint(masked_bpe, "[mask]") == (
        f'{masked_bpe}: expected the token "[mask]" (data.mask_token); the nearest is "[MASK]"'
    )
    assert complaint(plain_bpe, "statemen").endswith('the nearest is "Ġstatement"')
    assert complaint(plain_bpe, "@@@@@@@@").endswith("leave the option out to add a mask to the vocabulary")


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000], ids=["nested", "a long number"])
def test_json_that_python_cannot_read_either(content, tmp_path):
    """What neither the library nor Python reads is refused in a word."""
    (tmp_path / "tokenizer.json").write_text(content)
    message = complaint(tmp_path / "tokenizer.json")
    assert "expected a tokenizer.json, found JSON that can't be read: " in message
    assert len(message) < 500


def test_what_the_library_cannot_encode_is_the_files_fault(tmp_path):
    """A vocabulary without its [UNK] is found at the first word that it lacks, and the file is named."""
    path = save_words(tmp_path / "words.json", ["the"])
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {"the": 0}
    content["added_tokens"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"words.json: the tokenizers library can't use it: WordLevel error: "):
        open_json(path).encode(["other"])


def test_a_panic_of_the_library_is_an_error(tmp_path):
    """It is no Exception, and would pass through all that catches those."""
    path = save_words(tmp_path / "words.json", ["the"])
    tokenizer = open_json(path)

    class PanicException(BaseException):
        pass

    class Panics:
        def encode_batch(self, *_, **__):
            raise PanicException("index out of bounds")

    tokenizer._tokenizer = Panics()
    with pytest.raises(UsageError, match=r"words.json: the tokenizers library can't use it: index out of bounds"):
        tokenizer.encode(["the"])
