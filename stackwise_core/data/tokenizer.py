"""Text to token ids and back: one token a byte, or any tokenizer.json."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from stackwise_core.data.tokenizer_file import read_tokenizer_file
from stackwise_core.errors import UsageError

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.int32]

MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>")
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")


@frozen
class Joined:
    """The tokens of several texts, one after the other."""

    ids: Ids
    """[tokens]."""
    widths: Ids
    """[tokens]: UTF-8 bytes that each stands for. What no token stands for counts with the token before it, or with
    its text's first."""
    counts: NDArray[np.int64]
    """[texts]: tokens of each."""


class Tokenizer(ABC):
    """Turns texts into ids from 0 to ``vocab_size - 1`` and back."""

    vocab_size: int
    """How many ids there are, the added ones counted."""
    mask_id: int
    """Stands where a token is hidden."""
    pad_id: int
    """Fills the end of a row that no text is left for; never equal to ``mask_id``."""
    special_ids: frozenset[int]
    """Mask, pad, and every token that the tokenizer itself calls special: never masked, attended to, or scored."""
    fingerprint: bytes
    """16 bytes: a hash of everything that decides which ids a text gets."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Tokenise texts, without special tokens around them.

        Returns:
            For each text its ids [tokens] and, of the same shape, the offset in the text's UTF-8 bytes at which each
            token starts. Offsets never fall; tokens that share a character have the same one.
        """

    def encode_joined(self, texts: Sequence[str]) -> Joined:
        """Tokenise many texts at once, as ``encode`` does."""
        encoded = self.encode(texts)
        bounds = [_bounds(offsets, text) for text, (_, offsets) in zip(texts, encoded, strict=True)]
        return Joined(
            ids=np.concatenate([ids for ids, _ in encoded]),
            widths=np.concatenate([np.diff(edges) for edges in bounds]),
            counts=np.array([ids.size for ids, _ in encoded], np.int64),
        )

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text. Padding is left out; the mask and other special tokens are shown as they are written."""


def _bounds(offsets: Ids, text: str) -> Ids:
    """Where the bytes of each token begin, and where those of the last end."""
    edges = np.append(offsets, np.int32(len(text.encode("utf-8"))))
    edges[0] = 0
    return edges


def load_tokenizer(spec: str, *, mask_token: str | None) -> Tokenizer:
    """Open a tokenizer.

    Args:
        spec: ``"bytes"``, or the path of a tokenizer.json.
        mask_token: the token of the tokenizer.json to mask with; None looks for a usual one, or adds an id.

    Raises:
        UsageError: the file isn't there or is no tokenizer, or it has no such mask token.
    """
    if spec == "bytes":
        if mask_token is not None:
            raise UsageError(
                f'data.mask_token = "{mask_token}": expected none, since the tokenizer "bytes" has a mask of its own'
            )
        return ByteTokenizer()
    return JsonTokenizer(Path(spec), mask_token)


def _between_masks(ids: Iterable[int], mask_id: int) -> Iterable[list[int] | None]:
    """Runs of ids without a mask, and None for each mask."""
    for is_mask, run in groupby((int(token) for token in ids), key=lambda token: token == mask_id):
        if is_mask:
            yield from (None for _ in run)
        else:
            yield list(run)


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8; then come mask and pad."""

    vocab_size = 258
    mask_id = 256
    pad_id = 257
    special_ids = frozenset({256, 257})
    fingerprint = hashlib.blake2b(b"bytes 256 257", digest_size=16).digest()

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        encoded = (np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts)
        return [(ids, np.arange(ids.size, dtype=np.int32)) for ids in encoded]

    def encode_joined(self, texts: Sequence[str]) -> Joined:
        raw = [text.encode("utf-8") for text in texts]
        ids = np.frombuffer(b"".join(raw), np.uint8).astype(np.int32)
        return Joined(ids, np.ones(ids.size, np.int32), np.fromiter(map(len, raw), np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes that are no UTF-8, as a model may put them together, become U+FFFD."""
        runs = _between_masks((token for token in ids if token != self.pad_id), self.mask_id)
        return "".join(MASK_TOKENS[0] if run is None else bytes(run).decode("utf-8", "replace") for run in runs)


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, as the ``tokenizers`` library reads it; its truncation and padding are switched off."""

    def __init__(self, path: Path, mask_token: str | None) -> None:
        content = read_tokenizer_file(path)
        self._path = path
        self._tokenizer = _parse(path, content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        special = {
            number: token.content
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }

        self.vocab_size = max([*vocabulary.values(), *special], default=-1) + 1  # ids may have gaps
        if mask_token is not None and mask_token not in vocabulary:
            raise UsageError(f"{path}: {_no_such_token(mask_token, vocabulary, list(special.values()))}")
        mask_names = [mask_token] if mask_token is not None else MASK_TOKENS
        self.mask_id = next((vocabulary[name] for name in mask_names if name in vocabulary), self.vocab_size)
        self._mask_is_added = self.mask_id == self.vocab_size
        self.vocab_size += self._mask_is_added
        pads = (vocabulary[name] for name in PAD_TOKENS if name in vocabulary)
        self.pad_id = next((pad for pad in pads if pad != self.mask_id), self.vocab_size)
        self.vocab_size += self.pad_id == self.vocab_size
        self.special_ids = frozenset({self.mask_id, self.pad_id, *special})
        decisive = b"tokenizer.json %d %d " % (self.mask_id, self.pad_id) + content
        self.fingerprint = hashlib.blake2b(decisive, digest_size=16).digest()

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        with _explained(self._path):
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int32), _byte_offsets(text, encoding.offsets))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        kept = [int(token) for token in ids if token != self.pad_id]
        if not self._mask_is_added:
            return self._text(kept)
        runs = _between_masks(kept, self.mask_id)  # the library knows nothing of an id that we added
        return "".join(MASK_TOKENS[0] if run is None else self._text(run) for run in runs)

    def _text(self, ids: list[int]) -> str:
        with _explained(self._path):
            return self._tokenizer.decode(ids, skip_special_tokens=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the library can't do with a file is the file's fault. It raises plain Exception, or panics, which isn't one.

    Raises:
        UsageError: with what the library said.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise UsageError(f"{path}: the tokenizers library can't use it: {error!s:.300}") from error
        raise


def _parse(path: Path, content: bytes) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
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


def _no_such_token(name: str, vocabulary: dict[str, int], special: list[str]) -> str:
    for among in (special, list(vocabulary)):  # what is called special is the likelier meant
        by_lower = {token.lower(): token for token in among}
        nearest = get_close_matches(name.lower(), by_lower, n=1)
        if nearest:
            return f'expected the token "{name}" (data.mask_token); the nearest is "{by_lower[nearest[0]]}"'
    return f'expected the token "{name}" (data.mask_token); leave the option out to add a mask to the vocabulary'


def _byte_offsets(text: str, spans: list[tuple[int, int]]) -> Ids:
    """Offsets in UTF-8 bytes from the library's, which count characters."""
    starts = np.array([start for start, _ in spans], np.int32)
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
        starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)[starts]
    return np.maximum.accumulate(starts)  # a normalizer that moves characters may make them fall
