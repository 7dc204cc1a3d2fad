"""Content of a tokenizer.json, apart from the library that runs it: special tokens, sampling, the text of a token."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import frozen

Content = dict[str, Any]
"""A tokenizer.json, parsed; one that the library has accepted, or will be given to accept."""

FALLBACK = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of byte fallback."""

ANY_SIZE = 1 << 32
"""Bytes that a special token may stand for: more than are tokenised at once."""

_SAMPLING = {
    "dropout": "BPE dropout, which leaves merges out at random",
    "alpha": "sampling of segmentations",
    "nbest_size": "sampling of segmentations",
}
"""Settings of a model by which equal texts get other ids each time."""


@frozen
class DeterministicContent:
    """A tokenizer.json that always gives a text the same ids, whatever other texts are in the batch."""

    content: Content
    sampling: tuple[str, ...]
    """Settings that made ids random, and are off, such as ``model.dropout = 0.1``."""
    shaping: tuple[str, ...]
    """Settings that cut or filled up the ids of a text, and are off."""


def deterministic(content: Content) -> DeterministicContent:
    """Switch off sampling, truncation, padding, and the special tokens around a text."""
    fixed = content | {"truncation": None, "padding": None, "post_processor": None}
    model: Any = content.get("model")
    sampling = [name for name in _SAMPLING if isinstance(model, dict) and model.get(name)]
    if sampling:
        fixed["model"] = model | dict.fromkeys(sampling)
    return DeterministicContent(
        fixed,
        tuple(f"model.{name} = {model[name]} ({_SAMPLING[name]})" for name in sampling),
        tuple(name for name in ("truncation", "padding") if content.get(name)),
    )


def unknown_token(content: Content) -> str | None:
    """Return the token for text that the model has no token for; None if there is none."""
    model = content["model"]
    if isinstance(model["vocab"], list):  # a Unigram's pairs of a token and its score
        place, tokens = model.get("unk_id"), model["vocab"]
        return tokens[place][0] if place is not None and place < len(tokens) else None
    return model.get("unk_token")


def has_token_for_any_text(content: Content, vocabulary: Collection[str], alphabet: Collection[str]) -> bool:
    """Return whether all bytes are tokens. Then nothing is unknown, even if the file names an unknown token.

    Args:
        content: the tokenizer.json.
        vocabulary: its tokens.
        alphabet: the characters that stand for bytes in a byte-level tokenizer.
    """
    if _is_byte_level(content):
        return set(vocabulary) >= set(alphabet)
    return bool(content["model"].get("byte_fallback")) and set(vocabulary) >= FALLBACK


def special_tokens(content: Content) -> frozenset[str]:
    """Return all tokens that the file uses for something other than text.

    These are added tokens that are called special; the model's unknown token; what a post-processor puts around a text;
    what the file pads with; and a CTC decoder's blank. The tokens of byte fallback aren't among them: they stand for
    text.
    """
    named = {token["content"] for token in content.get("added_tokens") or () if token.get("special")}
    named.add(unknown_token(content))
    named.add((content.get("padding") or {}).get("pad_token"))
    for processor in _components(content, "post_processor"):
        named |= {processor[end][0] for end in ("cls", "sep") if end in processor}
        named |= {token for each in processor.get("special_tokens", {}).values() for token in each["tokens"]}
    named |= {decoder["pad_token"] for decoder in _components(content, "decoder") if decoder["type"] == "CTC"}
    return frozenset(token for token in named if token is not None)


def token_sizes(content: Content, vocabulary: Mapping[str, int], special: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield the id of each token, and the UTF-8 bytes of the text that it writes, whatever it stands for in a text.

    Where a normaliser drops or contracts characters, a token stands for text that can't be told from it. The bytes that
    it writes are the most that it may be said to stand for.

    Args:
        content: the tokenizer.json.
        vocabulary: ids by token, those of added tokens too.
        special: ids of tokens that write no text.
    """
    model, added = content["model"], {token["content"] for token in content.get("added_tokens") or ()}
    marks = frozenset(_space_marks(content))
    prefix, suffix = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    is_byte_level = _is_byte_level(content)
    for token, id_ in vocabulary.items():
        if id_ in special:
            yield id_, ANY_SIZE
        elif token in added:
            yield id_, _size(token)
        elif is_byte_level:
            yield id_, len(token)  # each of its characters is a byte
        elif model.get("byte_fallback") and token in FALLBACK:
            yield id_, 1
        else:
            text = token.removeprefix(prefix).removesuffix(suffix)
            for mark in marks:
                text = text.replace(mark, " ")
            yield id_, _size(text)


def _is_byte_level(content: Content) -> bool:
    return any(part["type"] == "ByteLevel" for part in _components(content, "normalizer", "pre_tokenizer"))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _space_marks(content: Content) -> Iterator[str]:
    """Yield the characters that mean a space in tokens."""
    for part in _components(content, "pre_tokenizer", "decoder"):
        if part["type"] == "Metaspace":
            yield part["replacement"]
        elif part["type"] == "Replace" and part["content"] == " " and "String" in part["pattern"]:
            yield part["pattern"]["String"]


def _components(content: Content, *sections: str) -> Iterator[Content]:
    """Yield the components of these sections, those of a sequence one by one."""
    for section in sections:
        part = content.get(section)
        if part and part["type"] == "Sequence":
            for members in part.values():
                if isinstance(members, list):
                    for member in members:
                        yield from _components({section: member}, section)
        elif part:
            yield part
