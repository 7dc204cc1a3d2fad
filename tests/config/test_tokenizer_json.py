import json

import pytest
from tokenizers import Tokenizer, models

from stackwise_core.config.tokenizer_json import SpecialIds, Vocabulary, parse_tokenizer, read_vocabulary
from stackwise_core.errors import UsageError

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def write(path, model, added=()):
    tokens = [{"id": id_, "content": token, **FLAGS, "special": special} for token, id_, special in added]
    path.write_text(json.dumps({"version": "1.0", "added_tokens": tokens, "model": model}))
    return path


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        {"type": "WordPiece", "vocab": {"a": 0, "b": 1}, "unk_token": "a", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 9},
        {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
        {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0},
    ],
    ids=lambda model: model["type"],
)  # fmt: skip
def test_ids_of_each_kind_of_model(tmp_path, model):
    """Those of the model and of added tokens, which are special or not."""
    found = read_vocabulary(write(tmp_path / "t.json", model, [("c", 2, False), ("d", 3, True)]))
    assert found.ids == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert (found.special, found.size, found.renumbered) == ({3: "d"}, 4, {})


def test_ids_with_gaps_are_the_library_s(tmp_path):
    """Whatever the file says of added tokens; what it says otherwise is kept for a note."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    path = write(tmp_path / "t.json", model, [("<mask>", 300, True), ("<pad>", 310, True)])
    found = read_vocabulary(path)
    assert found.ids == Tokenizer.from_file(str(path)).get_vocab() == {"a": 0, "b": 1, "<mask>": 2, "<pad>": 3}
    assert found.renumbered == {"<mask>": (300, 2), "<pad>": (310, 3)}


def test_check_and_run_have_the_same_ids(tmp_path):
    """What a configuration is checked with is what text is turned into."""
    from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer

    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 7}, "unk_token": "a"}
    path = write(tmp_path / "t.json", model, [("<mask>", 300, True)])
    vocabulary = read_vocabulary(path)
    tokenizer = load_tokenizer(str(path), mask_token=None)
    assert vocabulary.ids == Vocabulary.of(parse_tokenizer(path, path.read_bytes())).ids
    assert tokenizer.mask_id == vocabulary.ids["<mask>"]
    assert tokenizer.vocab_size == SpecialIds.of(vocabulary, None, {}).size == 9


def special(words=("a", "b"), mask_token=None, **special_ids):
    vocabulary = Vocabulary({word: id_ for id_, word in enumerate(words)}, {})
    found = SpecialIds.of(vocabulary, mask_token, special_ids)
    return found.mask, found.pad, found.size


def test_where_mask_and_padding_come_from():
    """From special_ids, from data.mask_token, by a usual name, or new; never the same for both."""
    assert special() == (2, 3, 4)
    assert special(("a", "<mask>", "<pad>")) == (1, 2, 3)
    assert special(("a", "<mask>", "<pad>"), mask=9) == (9, 2, 10)
    assert special(mask=5, pad=2) == (5, 2, 6)
    assert special(pad=1) == (2, 1, 3)
    assert special(mask_token="b", mask=1) == (1, 2, 3)
    assert special(("a", "<pad>"), mask=1) == (1, 2, 3)
    assert SpecialIds.of(Vocabulary({"a": 0, "b": 1}, {}), None, {"eos": 1}).all == {1, 2, 3}
    with pytest.raises(UsageError, match=r'data\.mask_token = "b" has the id 1, and data\.special_ids\.mask is 0'):
        special(mask_token="b", mask=0)


def test_a_tokenizer_that_is_not_there(tmp_path):
    """Said as any other mistake."""
    with pytest.raises(UsageError, match=r"gone\.json can't be read: No such file"):
        read_vocabulary(tmp_path / "gone.json")


def test_what_the_library_panics_at_is_no_tokenizer(tmp_path, monkeypatch):
    """A panic is no Exception, and would pass through all that catches those."""

    class PanicException(BaseException):
        pass

    def panic(content):
        raise PanicException("out of bounds")

    monkeypatch.setattr(Tokenizer, "from_buffer", panic, raising=False)
    Tokenizer(models.BPE()).save(str(tmp_path / "t.json"))
    with pytest.raises(UsageError, match=r"t\.json: expected a tokenizer\.json .*out of bounds"):
        read_vocabulary(tmp_path / "t.json")
