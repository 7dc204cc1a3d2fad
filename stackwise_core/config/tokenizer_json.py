"""The one reader of a tokenizer.json: its tokens and their ids, as in the tokenizers library."""

import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from stackwise_core.errors import UsageError

if TYPE_CHECKING:
    import tokenizers

MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>")
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
MASK, PAD = "mask", "pad"
"""Keys of ``data.special_ids`` that have a meaning; any other is a name for an id that is special."""


@frozen
class Vocabulary:
    """The tokens of a tokenizer.json. The library numbers added tokens without gaps, whatever the file says."""

    ids: Mapping[str, int]
    """Id of each token, those of added tokens too."""
    special: Mapping[int, str]
    """Special tokens among the added ones, by id."""
    renumbered: Mapping[str, tuple[int, int]] = field(factory=dict)
    """Ids that the file gives added tokens, and those of the library where they are others."""

    @classmethod
    def of(cls, library: "tokenizers.Tokenizer") -> "Vocabulary":
        """Return the vocabulary of a parsed file."""
        added = library.get_added_tokens_decoder()
        special = {id_: token.content for id_, token in added.items() if token.special}
        by_id = sorted(library.get_vocab(with_added_tokens=True).items(), key=lambda token: token[::-1])
        return cls(dict(by_id), dict(sorted(special.items())))  # the library has them in no order

    @property
    def size(self) -> int:
        """One more than the highest id; ids may have gaps."""
        return max([*self.ids.values(), *self.special], default=-1) + 1


@frozen
class SpecialIds:
    """The ids that are never masked, attended to or scored."""

    mask: int
    pad: int
    all: frozenset[int]
    size: int
    """Ids there are, those of the vocabulary and those that were added to it."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, mask_token: str | None, special_ids: Mapping[str, int]) -> "SpecialIds":
        """Find mask and padding: as they are given, or by a usual name, or as new ids beyond all others.

        Args:
            mask_token: as in ``data.mask_token``.
            special_ids: as in ``data.special_ids``.

        Raises:
            UsageError: there is no such mask token, or it isn't the one of ``special_ids``.
        """
        mask = special_ids.get(MASK)
        if mask_token is not None:
            if mask_token not in vocabulary.ids:
                raise UsageError(_no_such_token(mask_token, vocabulary))
            named = vocabulary.ids[mask_token]
            if mask not in (None, named):
                raise UsageError(
                    f'data.mask_token = "{mask_token}" has the id {named}, and data.special_ids.mask is {mask}: '
                    "leave one of them out"
                )
            mask = named
        if mask is None:
            mask = next((vocabulary.ids[name] for name in MASK_TOKENS if name in vocabulary.ids), None)
        size = max([vocabulary.size, *(id_ + 1 for id_ in special_ids.values())])
        if mask is None:
            mask, size = size, size + 1
        pads = [special_ids.get(PAD), *(vocabulary.ids.get(name) for name in PAD_TOKENS)]
        pad = next((pad for pad in pads if pad not in (None, mask)), None)
        if pad is None:
            pad, size = size, size + 1
        return cls(mask, pad, frozenset({mask, pad, *vocabulary.special, *special_ids.values()}), size)


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json.

    Raises:
        UsageError: the file can't be read, or isn't one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    return _vocabulary(path, content)


@lru_cache(maxsize=2)  # a check looks at the same few files again and again
def _vocabulary(path: Path, content: bytes) -> Vocabulary:
    vocabulary = Vocabulary.of(parse_tokenizer(path, content))
    written = {token["content"]: token["id"] for token in json.loads(content).get("added_tokens") or ()}
    known = {token: (id_, vocabulary.ids[token]) for token, id_ in written.items() if token in vocabulary.ids}
    return evolve(vocabulary, renumbered={token: ids for token, ids in known.items() if ids[0] != ids[1]})


def parse_tokenizer(path: Path, content: bytes) -> "tokenizers.Tokenizer":
    """Parse a tokenizer.json with the tokenizers library.

    Raises:
        UsageError: it isn't one; ``path`` is named.
    """
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_buffer(content)
    except BaseException as error:  # of a panic, too, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        try:
            json.loads(content)
        except json.JSONDecodeError as bad:
            raise UsageError(
                f"{path}:{bad.lineno}:{bad.colno}: expected a tokenizer.json, found bad JSON: {bad.msg}"
            ) from None
        except UnicodeDecodeError as bad:
            raise UsageError(f"{path}: expected a tokenizer.json, found no text at all: {bad.reason}") from None
        except (ValueError, RecursionError) as bad:  # a number of thousands of digits, thousands of brackets
            raise UsageError(f"{path}: expected a tokenizer.json, found JSON that can't be read: {bad}") from None
        raise UsageError(
            f"{path}: expected a tokenizer.json as the tokenizers library writes it, found other JSON: {error!s:.300}"
        ) from None


def _no_such_token(name: str, vocabulary: Vocabulary) -> str:
    for among in (vocabulary.special.values(), vocabulary.ids):  # what is called special is the likelier meant
        if nearest := _nearest(name, among):
            return f'expected the token "{name}" (data.mask_token); the nearest is "{nearest}"'
    return f'expected the token "{name}" (data.mask_token); leave the option out to add a mask to the vocabulary'


def _nearest(name: str, tokens: Collection[str]) -> str | None:
    by_lower = {token.lower(): token for token in tokens}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[nearest[0]] if nearest else None
