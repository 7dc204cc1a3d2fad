"""Tokenizers, from text to token ids and back: one token a byte, or any tokenizer.json."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from stackwise_core.config.tokenizer_content import (
    deterministic,
    has_token_for_any_text,
    special_tokens,
    token_sizes,
    unknown_token,
)
from stackwise_core.config.tokenizer_json import MASK_TOKENS, SpecialIds, Vocabulary, parse_tokenizer
from stackwise_core.engine.tokenizer.tokenizer_file import read_tokenizer_file
from stackwise_core.errors import UsageError

Ids = NDArray[np.int32]

LONG_TOKENS = 64
"""Number of a vocabulary's tokens that are tokenised several times, to see that chance has no part in it."""


@frozen
class Joined:
    """The tokens of several texts, one after the other."""

    ids: Ids
    """[tokens]."""
    widths: NDArray[np.integer]
    """[tokens]: UTF-8 bytes that each stands for. What no token stands for, as white space or a character that the
    tokenizer drops, counts with none of them."""
    counts: NDArray[np.int64]
    """[texts]: tokens of each."""
    sizes: NDArray[np.int64]
    """[texts]: UTF-8 bytes of each."""
    starts: Ids
    """[tokens]: the offset in its text's UTF-8 bytes at which each starts. It never falls within a text."""
    ends: Ids
    """[tokens]: the offset after its last byte."""

    def by_text(self) -> "list[Joined]":
        """Return each text's tokens by themselves."""
        ends = np.cumsum(self.counts)
        return [
            Joined(
                ids=self.ids[part],
                widths=self.widths[part],
                counts=self.counts[[text]],
                sizes=self.sizes[[text]],
                starts=self.starts[part],
                ends=self.ends[part],
            )
            for text, part in enumerate(map(slice, ends - self.counts, ends))
        ]


class Tokenizer(ABC):
    """Converter of texts into ids from 0 to ``vocab_size - 1`` and back."""

    vocab_size: int
    """Number of ids, the added ones counted."""
    mask_id: int
    """Id that stands where a token is hidden."""
    pad_id: int
    """Id that fills the end of a row that no text is left for; never equal to ``mask_id``."""
    special_ids: frozenset[int]
    """Mask, pad, and every token that the tokenizer's file names as special: never masked, attended to, or scored."""
    unknown_ids: frozenset[int] = frozenset()
    """Ids among them that stand for text which the tokenizer has no token for."""
    is_bytewise: bool = False
    """Whether each byte is a token, so that a text can be cut anywhere."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the file is read."""
    fingerprint: bytes
    """16 bytes: a hash of everything that decides which ids a text gets."""

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Tokenise texts, without special tokens around them.

        Returns:
            For each text its ids [tokens] and, of the same shape, the offset in the text's UTF-8 bytes at which each
            token starts. Offsets never fall; tokens that share a character have the same one.
        """
        return [(each.ids, each.starts) for each in self.encode_joined(texts).by_text()]

    @abstractmethod
    def encode_joined(self, texts: Sequence[str]) -> Joined:
        """Tokenise many texts at once, as ``encode`` does."""

    def wordless_ids(self, rows: int) -> frozenset[int]:
        """Return the ids below ``rows`` that stand for no text: special ones, and those that no token has."""
        return self.special_ids | frozenset(range(self.vocab_size, rows))

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text. Padding is left out; the mask and other special tokens are shown as they are written."""

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Turn ids into text as it reads after other tokens, and not as a text's beginning.

        Args:
            before: ids of some tokens before; none where they aren't known.
            ids: at least one.
        """
        before = before if len(before) else ids[:1]
        head, whole = self.decode(before), self.decode([*before, *ids])
        # A token may complete what began as no character.
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)


def load_tokenizer(spec: str, *, mask_token: str | None, special_ids: Mapping[str, int] | None = None) -> Tokenizer:
    """Open a tokenizer.

    Args:
        spec: ``"bytes"``, or the path of a tokenizer.json.
        mask_token: the token of the tokenizer.json to mask with; None looks for a usual one, or adds an id.
        special_ids: as in ``data.special_ids``: ids that are special beside those that the file calls so.

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
    """Yield runs of ids without a mask, and None for each mask."""
    for is_mask, run in groupby((int(token) for token in ids), key=lambda token: token == mask_id):
        if is_mask:
            yield from (None for _ in run)
        else:
            yield list(run)


class ByteTokenizer(Tokenizer):
    """Tokenizer of bytes: ids 0 to 255 are the bytes of UTF-8; then come mask and pad."""

    vocab_size = 258
    mask_id = 256
    pad_id = 257
    special_ids = frozenset({256, 257})
    is_bytewise = True
    fingerprint = hashlib.blake2b(b"bytes 256 257", digest_size=16).digest()

    def encode_joined(self, texts: Sequence[str]) -> Joined:
        raw = [text.encode("utf-8") for text in texts]
        ids = np.frombuffer(b"".join(raw), np.uint8).astype(np.int32)
        sizes = np.fromiter(map(len, raw), np.int64, len(raw))
        starts = np.arange(ids.size, dtype=np.int32) - np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.int32)
        ones = np.ones(ids.size, np.int32)
        return Joined(ids, widths=ones, counts=sizes, sizes=sizes, starts=starts, ends=starts + ones)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text. Bytes that are no UTF-8, as a model may put them together, become U+FFFD."""
        runs = _between_masks((token for token in ids if token != self.pad_id), self.mask_id)
        return "".join(MASK_TOKENS[0] if run is None else bytes(run).decode("utf-8", "replace") for run in runs)


class JsonTokenizer(Tokenizer):
    """Tokenizer from a tokenizer.json, as the ``tokenizers`` library reads it.

    What would make ids random is switched off.
    """

    def __init__(self, path: Path, mask_token: str | None, special_ids: Mapping[str, int]) -> None:
        from tokenizers.pre_tokenizers import ByteLevel

        raw = read_tokenizer_file(path)
        self._path = path
        self._tokenizer = parse_tokenizer(path, raw)
        content = json.loads(raw)
        fixed = deterministic(content)
        if fixed.content != content:
            self._tokenizer = parse_tokenizer(path, json.dumps(fixed.content).encode())
        vocabulary = Vocabulary.of(self._tokenizer)
        try:
            found = SpecialIds.of(vocabulary, mask_token, special_ids)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        named = {vocabulary.ids[token] for token in special_tokens(content) if token in vocabulary.ids}
        self.mask_id, self.pad_id, self.vocab_size = found.mask, found.pad, found.size
        self.special_ids = found.all | named
        self._known = frozenset(vocabulary.ids.values()) | frozenset(vocabulary.special)
        self._mask_is_added = self.mask_id not in self._known
        unknown = vocabulary.ids.get(unknown_token(content) or "")
        if unknown is not None and not has_token_for_any_text(content, vocabulary.ids, ByteLevel.alphabet()):
            self.unknown_ids = frozenset({unknown})
        self._sizes = np.zeros(self.vocab_size, np.int64)
        for id_, size in token_sizes(content, vocabulary.ids, self.special_ids):
            self._sizes[id_] = size
        self._refuse_chance()
        if off := (*fixed.sampling, *fixed.shaping):
            self.notes = (f"{path}: switched off, so that a text always has the same ids: {', '.join(off)}.",)
        decisive = b"tokenizer.json %d %d " % (self.mask_id, self.pad_id) + raw
        others = self.special_ids - {self.mask_id, self.pad_id, *vocabulary.special}
        if others:  # as in data.special_ids, or other parts of the file than its added tokens
            decisive = b"special %r " % (sorted(others),) + decisive
        if fixed.sampling:
            decisive += repr(fixed.sampling).encode()
        self.fingerprint = hashlib.blake2b(decisive, digest_size=16).digest()

    def encode_joined(self, texts: Sequence[str]) -> Joined:
        with _explained(self._path):
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        counts = np.array([len(encoding) for encoding in encodings], np.int64)
        tokens = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, tokens)
        flat = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        spans = np.fromiter(flat, np.int64, 2 * tokens).reshape(-1, 2)  # in characters of each text
        offsets = _byte_offsets("".join(texts))
        firsts = np.cumsum([0, *map(len, texts)])
        spans = offsets[spans + np.repeat(firsts[:-1], counts)[:, None]]
        starts, ends = np.maximum.accumulate(spans[:, 0]), spans[:, 1]  # one that moves characters may make them fall
        begins = np.repeat(offsets[firsts[:-1]], counts)
        return Joined(
            ids=ids,
            widths=_widths(starts, ends, self._sizes[ids]),
            counts=counts,
            sizes=np.diff(offsets[firsts]),
            starts=(starts - begins).astype(np.int32),
            ends=(ends - begins).astype(np.int32),
        )

    def _refuse_chance(self) -> None:
        """Tokenise a text of long tokens several times.

        Raises:
            UsageError: it has other ids each time: something that isn't known here samples.
        """
        own = self._tokenizer.get_vocab(with_added_tokens=False)
        longest = sorted(own, key=lambda token: (-len(token), token))[:LONG_TOKENS]
        try:
            text = self._text([own[token] for token in longest])
            first, *others = (ids.tolist() for ids, _ in self.encode([text] * 4))
        except UsageError:
            return  # text that it can't encode may never come
        if any(ids != first for ids in others):
            raise UsageError(
                f"{self._path}: it gives the same text other ids each time, for a reason that isn't known here. "
                "Expected a tokenizer that doesn't sample"
            )

    def wordless_ids(self, rows: int) -> frozenset[int]:
        """Return the ids below ``rows`` that mean no text; ids may have gaps."""
        return self.special_ids | (frozenset(range(rows)) - self._known)

    def decode(self, ids: Iterable[int]) -> str:
        kept = [int(token) for token in ids if token != self.pad_id]
        if not self._mask_is_added:
            return self._text(kept)
        text, before = "", list[int]()
        for run in _between_masks(kept, self.mask_id):  # the library knows nothing of an id that we added
            if run is None:
                text += MASK_TOKENS[0]
            else:
                text += self.decode_after(before, run) if text else self._text(run)
                before = run[-1:]
        return text

    def _text(self, ids: list[int]) -> str:
        with _explained(self._path):
            return self._tokenizer.decode(ids, skip_special_tokens=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the library's exceptions into errors about the file.

    The library raises plain Exception, or panics, which isn't one.

    Raises:
        UsageError: with what the library said.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise UsageError(f"{path}: the tokenizers library can't use it: {error!s:.300}") from error
        raise


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """Return where each character of a text begins in its UTF-8 bytes, and where the last one ends."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))])


def _widths(starts: NDArray[np.int64], ends: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes that count for each token: those that it covers, at most those that it writes.

    Tokens that overlap, as those of one character's bytes do, share out what they lie over together.

    Args:
        starts: offsets [tokens] of their first bytes, which never fall.
        ends: offsets [tokens] after their last bytes.
        sizes: bytes [tokens] that each writes.
    """
    if not starts.size:
        return sizes
    reached = np.maximum.accumulate(ends)
    firsts = np.flatnonzero(np.append(True, starts[1:] >= reached[:-1]))
    group = np.repeat(np.arange(firsts.size), np.diff(np.append(firsts, starts.size)))
    last = np.append(firsts[1:], starts.size) - 1
    lies_over = (np.maximum(reached[last] - starts[firsts], 0))[group]
    written = np.cumsum(sizes)
    before = (written - sizes)[firsts][group]
    return np.minimum(written - before, lies_over) - np.minimum(written - sizes - before, lies_over)
