"""Small tokenizer.json files, one for each way in which a tokenizer treats the beginning and the end of a text."""

from collections import Counter
from math import log
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from tests.tiny import TEXT

ALPHABET = [chr(code) for code in range(32, 127)] + ["\n", "é", "日", "本"]


def _bpe(lines, *, normalizer=None, pre_tokenizer=None, decoder=None, alphabet=None, **options):
    library = Library(models.BPE(unk_token="<unk>", **options))
    if normalizer is not None:
        library.normalizer = normalizer
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        library.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>"],
        initial_alphabet=alphabet or [*ALPHABET, "▁"],
        show_progress=False,
    )
    library.train_from_iterator(lines, trainer)
    return library


def _metaspace(lines, scheme, *, split=True):
    kind = {"prepend_scheme": scheme, "split": split}
    return _bpe(lines, pre_tokenizer=pre_tokenizers.Metaspace(**kind), decoder=decoders.Metaspace(**kind))


def _prepend(lines):
    """As Llama 2's: no pre-tokenizer, a mark before the text, and marks for spaces."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library = _bpe([line.replace(" ", "▁") for line in lines], decoder=back)
    library.normalizer = marks
    return library


def _byte_level(lines, *, prefix):
    return _bpe(
        lines,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(),
        alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _digits(lines):
    """As Llama 3's: numbers are taken by threes from their beginning."""
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _bpe(lines, pre_tokenizer=words, decoder=decoders.ByteLevel(), alphabet=alphabet)


def _fixed(lines):
    return _bpe(lines, pre_tokenizer=pre_tokenizers.FixedLength(length=5), decoder=decoders.Fuse())


def _bert(lines):
    # Not trained, since the library's trainer breaks ties in another way each time.
    words = sorted({word.strip(",.:;").lower() for line in lines for word in line.split()} - {""})
    letters = [letter for letter in ALPHABET if not letter.isspace() and not letter.isupper()]
    tokens = ["[UNK]", "[MASK]", "[PAD]", *letters, *(f"##{letter}" for letter in letters), "in", "##ing", *words]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    library = Library(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[UNK]", "[MASK]", "[PAD]"])
    return library


def _unigram(lines):
    """As T5's: the text is stripped, and the likeliest way through the whole of it is taken."""
    counts = Counter(f"▁{word}" for line in lines for word in line.split())
    total = counts.total()
    likely = {word: log(count / total) for word, count in counts.items()}
    pieces = {"<unk>": 0.0, "▁": -4.0, "ing": -5.0, "▁and▁": -3.0} | dict.fromkeys(ALPHABET, -8.0) | likely
    library = Library(models.Unigram(list(pieces.items()), unk_id=0))
    library.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    library.decoder = decoders.Metaspace()
    return library


def _words(lines):
    words = sorted({word for line in lines for word in line.split()})
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    library = Library(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library


KINDS = {
    "metaspace first": lambda lines: _metaspace(lines, "first"),
    "metaspace always": lambda lines: _metaspace(lines, "always"),
    "metaspace never": lambda lines: _metaspace(lines, "never"),
    "metaspace unsplit": lambda lines: _metaspace(lines, "first", split=False),
    "prepend": _prepend,
    "byte level": lambda lines: _byte_level(lines, prefix=False),
    "byte level, prefix space": lambda lines: _byte_level(lines, prefix=True),
    "digits by threes": _digits,
    "fixed length": _fixed,
    "bert": _bert,
    "unigram": _unigram,
    "words": _words,
}


def save_kind(kind: str, folder: Path) -> Path:
    """Write the tokenizer.json of a kind, once a folder."""
    path = folder / f"{kind}.json"
    if not path.exists():
        KINDS[kind](TEXT.read_text().splitlines()).save(str(path))
    return path
