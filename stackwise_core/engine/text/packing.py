"""Packing: from documents to the files of a prepared corpus.

Tokenise, divide into training and validation, fill rows.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from stackwise_core.engine.text.token_stream import BATCH, Coverage, Progress, Text, TokenStream, real_tokens, tokenise
from stackwise_core.engine.tokenizer.predictable import predictable
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer

LONGEST_PASSAGE = 16  # rows

Positions = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@frozen
class PackedSplit:
    """Record of a split in the manifest, or of a source's part of it."""

    samples: int = 0
    """Rows that an epoch visits, repeats counted."""
    rows: int = 0
    """Rows with a token to score."""
    tokens: int = 0
    """Tokens that can be scored, each counted once."""
    bytes: int = 0
    """UTF-8 bytes that they stand for."""
    alone: int = 0
    """Samples, of these, with nothing to predict where each token is predicted from those before it."""

    def causal(self) -> "PackedSplit":
        """Return the same without the samples in which nothing would be predicted."""
        return evolve(self, samples=self.samples - self.alone, alone=0)

    def __add__(self, other: "PackedSplit") -> "PackedSplit":
        return PackedSplit(
            self.samples + other.samples,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.alone + other.alone,
        )


@frozen
class PackedText:
    """Record of how one text was packed."""

    documents: int
    train: PackedSplit
    validation: PackedSplit


@frozen
class Packing:
    """Record of how a corpus was packed."""

    all_tokens: int
    """Tokens in all documents, special ones counted."""
    left_out: int
    """Tokens of training passages that equal one of a text for validation, and are in neither split."""
    texts: tuple[PackedText, ...]
    coverage: Coverage

    @property
    def train(self) -> PackedSplit:
        """Training split of all texts."""
        return sum((text.train for text in self.texts), PackedSplit())

    @property
    def validation(self) -> PackedSplit:
        """Validation split of all texts."""
        return sum((text.validation for text in self.texts), PackedSplit())


@frozen
class _Passages:
    """Pieces of documents that go to one split or the other, in corpus order."""

    starts: Positions
    """Token positions in the stream."""
    ends: Positions
    texts: Positions
    """Number of the text that each belongs to."""
    units: Positions
    """Number of the unit of the stream that each begins with."""
    bytes: Positions
    """UTF-8 bytes of its tokens that can be scored."""
    opens_document: NDArray[np.bool_]

    @property
    def sizes(self) -> Positions:
        """Tokens of each."""
        return self.ends - self.starts

    def where(self, chosen: Chosen) -> "_Passages":
        """Return the chosen passages. One whose predecessor isn't chosen opens a segment as a new document would."""
        follows = np.concatenate([[False], chosen[:-1]])
        opens = self.opens_document | ~follows
        return _Passages(
            self.starts[chosen],
            self.ends[chosen],
            self.texts[chosen],
            self.units[chosen],
            self.bytes[chosen],
            opens[chosen],
        )

    def cut(self, numbers: Positions, rows: int, seq_len: int, stream: TokenStream) -> "_Passages":
        """Cut each of these passages in two, of which the first fills so many rows."""
        after, units, starts = numbers + 1, self.units[numbers] + rows, self.starts[numbers] + rows * seq_len
        rests = self.bytes.copy()
        heads = stream.bytes_from(np.stack([self.units[numbers], units], axis=1).ravel())[::2]
        rests[numbers] -= heads
        return _Passages(
            np.insert(self.starts, after, starts),
            np.insert(self.ends, numbers, starts),
            np.insert(self.texts, after, self.texts[numbers]),
            np.insert(self.units, after, units),
            np.insert(rests, numbers, heads),
            np.insert(self.opens_document, after, False),
        )


@frozen
class _Section:
    """Passages of one text that fill rows of their own, and how many times an epoch visits these."""

    text: int
    passages: _Passages
    times: int


def pack(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    seq_len: int,
    validation_fraction: float,
    progress: Progress | None = None,
) -> Packing:
    """Write both splits of a corpus into an empty directory.

    For each split: ``NAME.tokens`` [rows, seq_len]; ``NAME.segments``, the positions in it at which a document or a
    part of one starts; ``NAME.rows``, the rows that have a token to score, in the order of sample ids: those of a text
    with a weight of 2 stand there twice; ``NAME.alone``, each of these rows in which no token comes right after another
    one of its document, so that causal language modelling has nothing to predict there. Peak memory doesn't grow with
    the corpus, but for some two hundred bytes a passage.
    """
    stream = tokenise(texts, tokenizer, seq_len, directory, progress)
    passages = _cut(stream, seq_len, validation_fraction)
    digests = _digests(stream, passages)
    in_validation, left_out = _divide(passages, texts, digests, validation_fraction)
    sections = {
        "train": list(_training_sections(passages, texts, digests, ~in_validation & ~left_out, stream, seq_len)),
        "validation": [
            _Section(number, passages.where(in_validation & (passages.texts == number)), 1)
            for number in range(len(texts))
        ],
    }
    written = {
        name: _write_split(directory / name, stream, parts, tokenizer, seq_len) for name, parts in sections.items()
    }
    stream.remove()
    packed = [
        PackedText(
            documents=stream.documents_of(number),
            **{name: sum(written[name][number], PackedSplit()) for name in written},
        )
        for number in range(len(texts))
    ]
    return Packing(stream.tokens, int(passages.sizes[left_out].sum()), tuple(packed), stream.coverage)


def _cut(stream: TokenStream, seq_len: int, validation_fraction: float) -> _Passages:
    """Cut documents into passages of 16 rows, or of a quarter of validation's share in a corpus too small for that."""
    quarter = int(validation_fraction * stream.tokens / 4) // seq_len if validation_fraction else LONGEST_PASSAGE
    length = seq_len * max(1, min(LONGEST_PASSAGE, quarter))
    counts = -(-stream.document_sizes // length)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(stream.document_starts, counts) + within * length
    ends = np.minimum(starts + length, np.repeat(stream.document_starts + stream.document_sizes, counts))
    sizes = -(-(ends - starts) // seq_len)  # each document begins a unit, and so each passage does
    units = np.cumsum(sizes) - sizes
    return _Passages(
        starts,
        ends,
        texts=np.repeat(stream.document_texts, counts),
        units=units,
        bytes=stream.bytes_from(units),
        opens_document=within == 0,
    )


def _digests(stream: TokenStream, passages: _Passages) -> NDArray[np.uint64]:
    """Return the hash of each passage's ids: [passages, 2], of which the first is the more significant."""
    hashed = bytearray()
    for _, spans in _spans(passages):
        first, last = spans[0][0], spans[-1][1]
        ids = stream.ids(first, last)
        for start, end in spans:
            hashed += xxh3_128_digest(ids[start - first : end - first].tobytes())
    return np.frombuffer(bytes(hashed), ">u8").astype(np.uint64).reshape(-1, 2)


def _divide(
    passages: _Passages, texts: Sequence[Text], digests: NDArray[np.uint64], validation_fraction: float
) -> tuple[Chosen, Chosen]:
    """Return which passages are for validation, and which for nothing, since they would be on both sides."""
    held_out = np.array([text.is_validation for text in texts])[passages.texts]
    if not held_out.any():
        return _lowest(digests, passages.sizes, validation_fraction * passages.sizes.sum()), held_out
    groups = _groups(digests)
    also_held_out = np.zeros(groups.max() + 1, bool)
    also_held_out[groups[held_out]] = True
    return held_out, also_held_out[groups] & ~held_out


def _training_sections(
    passages: _Passages,
    texts: Sequence[Text],
    digests: NDArray[np.uint64],
    trained: Chosen,
    stream: TokenStream,
    seq_len: int,
) -> Iterator[_Section]:
    """Yield each text's training passages.

    Of a weight such as 2.5 those that are visited three times come first, then the others.
    """
    for number, text in enumerate(texts):
        chosen = trained & (passages.texts == number)
        own = passages.where(chosen)
        times, share = int(text.weight), text.weight % 1
        if share:
            own, more = _share_of(own, digests[chosen], share, stream, seq_len)
            yield _Section(number, own.where(more), times + 1)
            own = own.where(~more)
        if times:
            yield _Section(number, own, times)


def _share_of(
    passages: _Passages, digests: NDArray[np.uint64], share: float, stream: TokenStream, seq_len: int
) -> tuple[_Passages, Chosen]:
    """Choose a share of the tokens: passages of the lowest hashes, of the last only its first rows; equal ones alike.

    Returns:
        The passages, the last one cut in two, and which of these are chosen.
    """
    sizes = passages.sizes
    wanted = share * sizes.sum()
    chosen = _lowest(digests, sizes, wanted)
    if not chosen.any():
        return passages, chosen
    groups = _groups(digests)
    last = groups == groups[chosen].max()
    wanted -= sizes[chosen & ~last].sum()
    rows = math.ceil(wanted / last.sum() / seq_len)
    numbers = np.flatnonzero(last & (sizes > rows * seq_len))
    return passages.cut(numbers, rows, seq_len, stream), np.insert(chosen, numbers + 1, False)


def _lowest(digests: NDArray[np.uint64], sizes: Positions, wanted: float) -> Chosen:
    """Return the passages of the lowest hashes until their tokens reach the wanted number, equal ones together."""
    groups = _groups(digests)
    group_sizes = np.bincount(groups, weights=sizes)
    before = np.cumsum(group_sizes) - group_sizes
    return (before < wanted)[groups]


def _groups(digests: NDArray[np.uint64]) -> Positions:
    """Return for each passage the rank of its hash among all distinct ones."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(is_new) - 1
    return groups


def _write_split(
    path: Path, stream: TokenStream, sections: Sequence[_Section], tokenizer: Tokenizer, seq_len: int
) -> dict[int, list[PackedSplit]]:
    """Write the files of a split, and return what was written by text."""
    written: dict[int, list[PackedSplit]] = {section.text: [] for section in sections}
    rows = 0
    with (
        path.with_suffix(".tokens").open("wb") as tokens_out,
        path.with_suffix(".rows").open("w+b") as rows_out,
        path.with_suffix(".segments").open("wb") as segments_out,
        path.with_suffix(".alone").open("wb") as alone_out,
    ):
        for section in sections:
            passages = section.passages
            positions = rows * seq_len + np.cumsum(passages.sizes) - passages.sizes
            starts = positions[passages.opens_document]
            segments_out.write(starts.astype("<i8").tobytes())
            tokens, first, first_alone = 0, rows_out.tell(), alone_out.tell()
            for block, scorable in _blocks(stream, passages, tokenizer, seq_len):
                tokens_out.write(block.tobytes())
                some = scorable.any(axis=1)
                rows_out.write((rows + np.flatnonzero(some)).astype("<i8").tobytes())
                segments = _segments(scorable, starts, rows * seq_len)
                alone = some & ~predictable(segments, causal=True).any(axis=1)
                alone_out.write((rows + np.flatnonzero(alone)).astype("<i8").tobytes())
                tokens += int(np.count_nonzero(scorable))
                rows += len(block)
            size = rows_out.tell() - first
            _repeat(rows_out, first, size, section.times - 1)
            alone_there = section.times * (alone_out.tell() - first_alone) // 8
            samples, read = section.times * size // 8, int(passages.bytes.sum())
            packed = PackedSplit(samples, size // 8, tokens, read, alone_there)
            written[section.text].append(packed)
    return written


def _segments(scorable: Chosen, starts: Positions, first: int) -> Positions:
    """Return a number for each document [rows, seq_len], 0 where nothing can be scored.

    Args:
        scorable: bool [rows, seq_len], of rows whose first token is at position ``first`` of the split.
        starts: where documents start in the split, in order.
    """
    begin, end = np.searchsorted(starts, (first, first + scorable.size))
    is_start = np.zeros(scorable.size, np.int64)
    is_start[starts[begin:end] - first] = 1
    return (1 + np.cumsum(is_start)).reshape(scorable.shape) * scorable


def _repeat(file: BinaryIO, start: int, size: int, times: int) -> None:
    """Write the last ``size`` bytes of a file, which begin at ``start``, so many times more."""
    for _ in range(times):
        for at in range(start, start + size, BATCH):
            file.seek(at)
            block = file.read(min(BATCH, start + size - at))
            file.seek(0, os.SEEK_END)
            file.write(block)


def _blocks(
    stream: TokenStream, passages: _Passages, tokenizer: Tokenizer, seq_len: int
) -> Iterator[tuple[NDArray[Any], Chosen]]:
    """Yield rows of these passages [rows, seq_len], and which of their tokens can be scored; the last row is padded."""
    real = real_tokens(tokenizer)
    rest = stream.ids(0, 0)
    for last, spans in _spans(passages):
        ids = np.concatenate([rest, *(stream.ids(start, end) for start, end in spans)])
        if last:
            ids = np.concatenate([ids, np.full(-ids.size % seq_len, tokenizer.pad_id, ids.dtype)])
        whole = ids.size // seq_len * seq_len
        block, rest = ids[:whole].reshape(-1, seq_len), ids[whole:]
        yield block, real.take(block, mode="clip")  # twice as fast as real[block]


def _spans(passages: _Passages) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """Yield passages, some million tokens at a time, and whether these are the last."""
    groups = np.cumsum(passages.sizes) // BATCH
    firsts = [*np.flatnonzero(np.diff(groups, prepend=-1)).tolist(), groups.size]
    for first, stop in itertools.pairwise(firsts):
        spans = zip(passages.starts[first:stop].tolist(), passages.ends[first:stop].tolist(), strict=True)
        yield stop == groups.size, list(spans)
