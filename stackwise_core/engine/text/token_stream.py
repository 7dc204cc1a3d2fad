"""Token stream: all documents as one long row of token ids on disk, with the bounds of the documents in it."""

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from stackwise_core.engine.text.mapped import map_array
from stackwise_core.engine.tokenizer import cutting
from stackwise_core.engine.tokenizer.cutting import Tokenised, Window, cut, meet
from stackwise_core.engine.tokenizer.tokenizer import Joined, Tokenizer
from stackwise_core.interfaces.corpus import Document

BATCH = 1 << 20  # tokens or characters handled at once
PIECE_COSTS = 256  # characters that a piece counts for beside its own, so that a batch of short ones isn't too large
THREADS = 2
"""Batches that are tokenised at the same time. The library uses all cores for each; while one is turned into arrays,
which Python does on one core, the cores have the other."""

IDS, UNITS = "ids", "units"
"""The stream's files."""
UNIT = np.dtype("<u4")

Positions = NDArray[np.int64]
Progress = Callable[[int], None]
"""Function that is called with the UTF-8 bytes of text tokenised so far."""


@frozen
class Text:
    """Documents that are packed together, and their purpose."""

    documents: Iterable[Document]
    weight: float = 1.0
    """Number of times that an epoch passes over those of its passages that are trained on."""
    is_validation: bool = False
    """Whether all of it is for validation, and nothing of the other texts."""


@frozen
class Coverage:
    """UTF-8 bytes of all texts, and those of them that no token can be scored for."""

    bytes: int
    unknown: int
    """Bytes of text for which the tokenizer has only its unknown token."""
    dropped: int
    """Bytes of text that has no token at all, such as white space between words."""


@frozen
class TokenStream:
    """All documents one after the other. A unit is ``seq_len`` tokens of a document, or what is left at its end."""

    tokens: int
    document_starts: Positions
    document_texts: Positions
    """Number of the text that each document belongs to."""
    coverage: Coverage
    _directory: Path = field(repr=False)
    _dtype: "np.dtype[np.unsignedinteger]" = field(repr=False)
    _file: BinaryIO = field(init=False, repr=False)

    @_file.default
    def _open(self) -> BinaryIO:
        return (self._directory / IDS).open("rb")

    @property
    def document_sizes(self) -> Positions:
        """Tokens of each document."""
        return np.diff(np.append(self.document_starts, self.tokens))

    def documents_of(self, text: int) -> int:
        """Return how many documents of a text have tokens."""
        return int((self.document_texts == text).sum())

    def ids(self, start: int, end: int) -> NDArray[np.unsignedinteger]:
        """Return ids [end - start], read from the file rather than mapped, so that memory stays flat."""
        width = self._dtype.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), (end - start) * width, start * width), self._dtype)

    def bytes_from(self, units: Positions) -> Positions:
        """Return the UTF-8 bytes of the tokens that can be scored, from each of these units to the next, or the end."""
        if not units.size:
            return np.zeros(0, np.int64)
        return np.add.reduceat(map_array(self._directory / UNITS, UNIT), units, dtype=np.int64)

    def remove(self) -> None:
        """Delete the files."""
        self._file.close()
        (self._directory / IDS).unlink()
        (self._directory / UNITS).unlink()


def token_dtype(tokenizer: Tokenizer) -> "np.dtype[np.unsignedinteger]":
    """Return the type of ids on disk: two bytes where the vocabulary fits, else four; little-endian everywhere."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def real_tokens(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Return which ids are no special token: [vocab_size]."""
    real = np.ones(tokenizer.vocab_size, bool)
    real[sorted(tokenizer.special_ids)] = False
    return real


@frozen
class _Piece:
    """A text of bounded size."""

    number: int
    """Number of the text that it is from."""
    opens: bool
    """Whether it is the first of its document."""
    window: Window


def tokenise(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    seq_len: int,
    directory: Path,
    progress: Progress | None,
) -> TokenStream:
    """Write the ids of all documents, and the bytes of their units, into two files of a directory."""
    dtype, real = token_dtype(tokenizer), real_tokens(tokenizer)
    unknown_ids = sorted(tokenizer.unknown_ids)
    starts, numbers = array("q"), array("q")
    tokens = size = unknown = dropped = 0
    opened = False  # whether a token of the current document was seen
    with (directory / IDS).open("wb") as file, (directory / UNITS).open("wb") as units_file:
        units = _Units(units_file, seq_len)
        encoded = _encoded(_batches(_pieces(texts, 0 if tokenizer.is_bytewise else cutting.OVERLAP)), tokenizer)
        for batch, joined in _own_tokens(encoded, tokenizer):
            first = tokens
            for piece, count in zip(batch, joined.counts.tolist(), strict=True):
                opened = opened and not piece.opens
                if count and not opened:
                    starts.append(tokens)
                    numbers.append(piece.number)
                    opened = True
                tokens += count
            file.write(joined.ids.astype(dtype).tobytes())
            units.add(joined.widths * real.take(joined.ids, mode="clip"), starts, first)
            batch_size = int(joined.sizes.sum())
            size += batch_size
            dropped += batch_size - int(joined.widths.sum(dtype=np.int64))
            if unknown_ids:
                unknown += int(joined.widths[np.isin(joined.ids, unknown_ids)].sum(dtype=np.int64))
            if progress:
                progress(size)
        units.finish()
    return TokenStream(tokens, _numbers(starts), _numbers(numbers), Coverage(size, unknown, dropped), directory, dtype)


def _numbers(values: "array[int]") -> Positions:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)


@define
class _Units:
    """Writer of the units: it sums up the bytes of each unit as tokens come in."""

    _file: BinaryIO
    _seq_len: int
    _begun: NDArray[np.unsignedinteger] = field(factory=lambda: np.zeros(0, UNIT), init=False)
    """Bytes so far of the last unit, [1]; [0] before the first."""

    def add(self, widths: NDArray[np.integer], starts: "array[int]", first: int) -> None:
        """Add the bytes of some tokens [n].

        Args:
            starts: where all documents so far begin in the stream.
            first: where these tokens do.
        """
        if not widths.size:
            return
        opened = len(starts)
        while opened and starts[opened - 1] > first:
            opened -= 1
        bounds = [*starts[max(0, opened - 1) :], first + widths.size]
        bounds[0] = max(bounds[0], first + (bounds[0] - first) % self._seq_len)  # an open document's next unit
        edges = np.concatenate([np.arange(start, stop, self._seq_len) for start, stop in pairwise(bounds)]) - first
        continues = not edges.size or edges[0] > 0
        sums = np.add.reduceat(widths, np.append(0, edges) if continues else edges).astype(UNIT)
        if continues:
            sums[0] += self._begun[0]
        else:
            sums = np.concatenate([self._begun, sums])
        self._file.write(sums[:-1].tobytes())
        self._begun = sums[-1:]

    def finish(self) -> None:
        """Write the last unit."""
        self._file.write(self._begun.tobytes())


def _encoded(batches: Iterable[list[_Piece]], tokenizer: Tokenizer) -> Iterator[tuple[list[_Piece], Joined]]:
    """Yield batches with their tokens, in order; the next ones are read and tokenised meanwhile."""
    waiting: deque[tuple[list[_Piece], Future[Joined]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(tokenizer.encode_joined, [piece.window.text for piece in batch])))
            if len(waiting) > THREADS:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _own_tokens(
    encoded: Iterable[tuple[list[_Piece], Joined]], tokenizer: Tokenizer
) -> Iterator[tuple[list[_Piece], Joined]]:
    """Leave out the tokens of text that windows share; a window is given when the next one is known."""
    held: tuple[_Piece, Tokenised] | None = None
    for batch, joined in encoded:
        if batch[0].window.stands_alone:
            yield batch, joined
            continue
        for piece, tokens in zip(batch, joined.by_text(), strict=True):
            here = Tokenised(piece.window, tokens)
            if held is not None:
                own, here = meet(held[1], here, lambda text: tokenizer.encode_joined([text]))
                if own is None:
                    piece = held[0]
                else:
                    yield [held[0]], own
            held = (piece, here)
            if not here.window.after:
                yield [piece], here.own()
                held = None


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Yield pieces that are tokenised together: whole documents, or windows of long ones."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        if batch and batch[0].window.stands_alone != piece.window.stands_alone:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.window.text) + PIECE_COSTS
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(texts: Sequence[Text], overlap: int) -> Iterator[_Piece]:
    for number, text in enumerate(texts):
        for document in text.documents:
            for place, window in enumerate(cut(document.parts, overlap)):
                yield _Piece(number, place == 0, window)
