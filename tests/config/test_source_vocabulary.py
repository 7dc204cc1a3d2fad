import json

from stackwise_core.config.source_vocabulary import byte_characters, other_vocabulary


def write(path, vocabulary):
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    return path


def test_the_characters_of_bytes_are_the_library_s():
    """The same 256 that the tokenizers library has for a byte-level model, each for its byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab=byte_characters(), merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, [*range(0x800), 0x20AC, 0x1F600]))
    assert bytes(library.encode(text).ids) == text.encode()


def test_the_same_ids_with_more_beyond(tmp_path):
    """What a tokenizer adds at the end does no harm; anything else is named."""
    theirs = str(write(tmp_path / "theirs.json", {"a": 0, "b": 1, "c": 3}))

    def why(vocabulary):
        return other_vocabulary(str(write(tmp_path / "ours.json", vocabulary)), theirs)

    assert why({"a": 0, "b": 1, "c": 3}) is None
    assert why({"a": 0, "b": 1, "c": 3, "[MASK]": 4, "d": 9}) is None
    problem = f'expected the source\'s own tokenizer, {theirs}, found "{tmp_path / "ours.json"}", which '
    assert why({"a": 0, "b": 1}) == f'{problem}hasn\'t its token "c"'
    assert why({"a": 1, "b": 0, "c": 3}) == f'{problem}gives its token "a" the id 1, not 0'
    assert why({"a": 0, "b": 1, "c": 3, "d": 2}) == f"{problem}has a token of its own with the id 2"


def test_bytes_fit_a_vocabulary_of_bytes(tmp_path):
    """With or without a mask; with other tokens they don't."""
    for specials in ({}, {"[MASK]": 256, "[PAD]": 257}):
        assert other_vocabulary("bytes", str(write(tmp_path / "t.json", byte_characters() | specials))) is None
    pairs = str(write(tmp_path / "t.json", byte_characters() | {"ab": 256}))
    assert "hasn't its token" in other_vocabulary("bytes", pairs)
    assert other_vocabulary("bytes", "bytes") is None
