"""Text to token ids and back: one token a byte, or any tokenizer.json."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from stackwise_core.config.tokenizer_json import MASK_TOKENS, SpecialIds, Vocabulary, parse_tokenizer
from stackwise_core.data.tokenizer_file import read_tokenizer_file
from stackwise_core.errors import UsageError

Ids = NDArray[np.int32]


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

    def wordless_ids(self, rows: int) -> frozenset[int]:
        """Return the ids below ``rows`` that stand for no text: special ones, and those that no token has."""
        return self.special_ids | frozenset(range(self.vocab_size, rows))

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text. Padding is left out; the mask and other special tokens are shown as they are written."""


def _bounds(offsets: Ids, text: str) -> Ids:
    """Where the bytes of each token begin, and where those of the last end."""
    edges = np.append(offsets, np.int32(len(text.encode("utf-8"))))
    edges[0] = 0
    return edges


def load_tokenizer(spec: str, *, mask_token: str | None, special_ids: Mapping[str, int] | None = None) -> Tokenizer:
    """Open a tokenizer.

    Args:
        spec: ``"bytes"``, or the path of a tokenizer.json.
        mask_token: the token of the tokenizer.json to mask with; None looks for a usual one, or adds an id.
        special_ids: as ``data.special_ids`` has them: ids that are special beside those that the file calls so.

    Raises:
        UsageError: the file isn't there or is no tokenizer, or it has no such mask token.
    """
    if spec == "bytes":
        if mask_token is not None:
            raise UsageError(
                f'data.mask_token = "{mask_token}": expected none, since the tokenizer "bytes" has a mask of its own'
            )
        if special_ids:
            raise UsageError('data.special_ids: expected none, since the tokenizer "bytes" has its own')
        return ByteTokenizer()
    return JsonTokenizer(Path(spec), mask_token, special_ids or {})


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

    def __init__(self, path: Path, mask_token: str | None, special_ids: Mapping[str, int]) -> None:
        content = read_tokenizer_file(path)
        self._path = path
        self._tokenizer = parse_tokenizer(path, content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = Vocabulary.of(self._tokenizer)
        try:
            found = SpecialIds.of(vocabulary, mask_token, special_ids)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        self.mask_id, self.pad_id, self.special_ids, self.vocab_size = found.mask, found.pad, found.all, found.size
        self._known = frozenset(vocabulary.ids.values()) | frozenset(vocabulary.special)
        self._mask_is_added = self.mask_id not in self._known
        decisive = b"tokenizer.json %d %d " % (self.mask_id, self.pad_id) + content
        others = found.all - {found.mask, found.pad, *vocabulary.special}
        if others:  # as data.special_ids has them
            decisive = b"special %r " % (sorted(others),) + decisive
        self.fingerprint = hashlib.blake2b(decisive, digest_size=16).digest()

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        with _explained(self._path):
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int32), _byte_offsets(text, encoding.offsets))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def wordless_ids(self, rows: int) -> frozenset[int]:
        """See ``Tokenizer``; ids may have gaps."""
        return self.special_ids | (frozenset(range(rows)) - self._known)

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


def _byte_offsets(text: str, spans: list[tuple[int, int]]) -> Ids:
    """Offsets in UTF-8 bytes from the library's, which count characters."""
    starts = np.array([start for start, _ in spans], np.int32)
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
        starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)[starts]
    return np.maximum.accumulate(starts)  # a normalizer that moves characters may make them fall
