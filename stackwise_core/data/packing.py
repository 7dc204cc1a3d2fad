"""From documents to the files of a prepared corpus: tokenise, divide into training and validation, pack into rows."""

import hashlib
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from stackwise_core.data.corpus import Document
from stackwise_core.data.tokenizer import Tokenizer

PIECE = 1 << 17  # characters; a longer text is tokenised in pieces, so that memory doesn't grow with it
BATCH = 1 << 20  # tokens or characters handled at once
LONGEST_PASSAGE = 16  # rows

Positions = NDArray[np.int64]


@frozen
class PackedSplit:
    """What the manifest says of a split. ``tokens`` and ``bytes`` count what can be scored."""

    rows: int
    tokens: int
    bytes: int


@frozen
class Packing:
    """What became of a corpus."""

    all_tokens: int
    """Tokens in all documents, special ones counted."""
    train: PackedSplit
    validation: PackedSplit


@frozen
class _Text:
    """All documents as one stream: ids [tokens], UTF-8 bytes of each token [tokens], first token of each document."""

    ids: NDArray[np.unsignedinteger]
    widths: NDArray[np.uint32]
    document_starts: Positions


@frozen
class _Passages:
    """Pieces of documents that go to one split or the other, in corpus order; token positions in the stream."""

    starts: Positions
    ends: Positions
    opens_document: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> "_Passages":
        """The chosen passages. One whose predecessor isn't chosen opens a segment as a new document would."""
        follows = np.concatenate([[False], chosen[:-1]])
        opens = self.opens_document | ~follows
        return _Passages(self.starts[chosen], self.ends[chosen], opens[chosen])


def token_dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The type of ids on disk: two bytes where the vocabulary fits, else four; little-endian everywhere."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def real_tokens(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which ids are no special token: [vocab_size]."""
    real = np.ones(tokenizer.vocab_size, bool)
    real[sorted(tokenizer.special_ids)] = False
    return real


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    seq_len: int,
    validation_fraction: float,
    progress: Callable[[int], None] | None,
) -> Packing:
    """Write both splits of a corpus into an empty directory.

    For each split: ``NAME.tokens`` [rows, seq_len]; ``NAME.segments``, the positions in it at which a document or a
    part of one starts; ``NAME.rows``, the rows that have a token to score. Peak memory doesn't grow with the corpus,
    but for a few hundred bytes a passage.
    """
    scratch = (directory / "ids", directory / "widths")
    text = _tokenise(documents, tokenizer, *scratch, progress)
    passages = _cut(text, seq_len, validation_fraction)
    in_validation = _choose(text, passages, validation_fraction)
    written = {
        name: _write_split(directory / name, text, passages.where(chosen), tokenizer, seq_len)
        for name, chosen in (("train", ~in_validation), ("validation", in_validation))
    }
    all_tokens = text.ids.size
    del text
    for path in scratch:
        path.unlink()
    return Packing(all_tokens, **written)


class ContentHash:
    """Hash of a stream of documents: of their texts and their order, whatever their names."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.documents = 0

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents through and take them in."""
        for document in documents:
            raw = document.text.encode("utf-8")
            self._hash.update(len(raw).to_bytes(8, "little"))
            self._hash.update(raw)
            self.documents += 1
            yield document

    def digest(self) -> bytes:
        """16 bytes for all that has passed."""
        return self._hash.digest()


def _tokenise(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    ids_file: Path,
    widths_file: Path,
    progress: Callable[[int], None] | None,
) -> _Text:
    dtype = token_dtype(tokenizer)
    starts = array("q")
    tokens = done = 0
    document_opened = False
    with ids_file.open("wb") as ids_out, widths_file.open("wb") as widths_out:
        for batch in _batches(_pieces(documents)):
            all_ids, all_widths = [], []
            for (first, piece), (ids, offsets) in zip(batch, tokenizer.encode([p for _, p in batch]), strict=True):
                size = len(piece.encode("utf-8"))
                done += size
                document_opened = document_opened and not first
                if ids.size and not document_opened:
                    starts.append(tokens)
                    document_opened = True
                # What no token stands for counts with the token before it, or with the first one.
                bounds = np.append(offsets, size)
                bounds[0] = 0
                all_ids.append(ids.astype(dtype))
                all_widths.append(np.diff(bounds).astype("<u4"))
                tokens += ids.size
            np.concatenate(all_ids).tofile(ids_out)
            np.concatenate(all_widths).tofile(widths_out)
            if progress:
                progress(done)
    return _Text(map_array(ids_file, dtype), map_array(widths_file, "<u4"), np.array(starts, np.int64))


def _pieces(documents: Iterable[Document]) -> Iterator[tuple[bool, str]]:
    """Texts of bounded size, and whether each is the first of its document."""
    for document in documents:
        start = 0
        while start < len(document.text):
            end = _seam(document.text, start)
            yield start == 0, document.text[start:end]
            start = end


# Where a text is cut with the least harm to its tokens: at the start of a line, or else before a space.
_SEAMS = (re.compile(r"\n(?=\S)"), re.compile(r"\S(?= )"))


def _seam(text: str, start: int) -> int:
    end = start + PIECE
    if end >= len(text):
        return len(text)
    for seam in _SEAMS:
        cuts = [match.end() for match in seam.finditer(text, end - PIECE // 8, end)]
        if cuts:
            return cuts[-1]
    return end


def _batches(pieces: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    batch: list[tuple[bool, str]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut(text: _Text, seq_len: int, validation_fraction: float) -> _Passages:
    """Cut documents into passages of 16 rows, or of a quarter of validation's share in a corpus too small for that."""
    quarter = int(validation_fraction * text.ids.size / 4) // seq_len
    length = seq_len * max(1, min(LONGEST_PASSAGE, quarter))
    document_ends = np.append(text.document_starts[1:], text.ids.size)[: text.document_starts.size]
    counts = -(-(document_ends - text.document_starts) // length)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(text.document_starts, counts) + within * length
    return _Passages(starts, np.minimum(starts + length, np.repeat(document_ends, counts)), within == 0)


def _choose(text: _Text, passages: _Passages, validation_fraction: float) -> NDArray[np.bool_]:
    """Which passages are for validation: those of the lowest hashes, equal ones together."""
    if not validation_fraction:
        return np.zeros(passages.starts.size, bool)
    spans = list(zip(passages.starts.tolist(), passages.ends.tolist(), strict=True))
    hashes = [xxh3_128_digest(text.ids[start:end].tobytes()) for start, end in spans]
    sizes: Counter[bytes] = Counter()
    for digest, (start, end) in zip(hashes, spans, strict=True):
        sizes[digest] += end - start
    chosen: set[bytes] = set()
    wanted = validation_fraction * text.ids.size
    for digest in sorted(sizes):
        if wanted <= 0:
            break
        chosen.add(digest)
        wanted -= sizes[digest]
    return np.array([digest in chosen for digest in hashes], bool)


def _write_split(path: Path, text: _Text, passages: _Passages, tokenizer: Tokenizer, seq_len: int) -> PackedSplit:
    real = real_tokens(tokenizer)
    sizes = passages.ends - passages.starts
    positions = np.cumsum(sizes) - sizes
    positions[passages.opens_document].astype("<i8").tofile(path.with_suffix(".segments"))

    rows = kept = tokens = scored_bytes = 0
    rest = np.zeros(0, text.ids.dtype)
    with path.with_suffix(".tokens").open("wb") as tokens_out, path.with_suffix(".rows").open("wb") as rows_out:
        for last, spans in _spans(passages):
            ids = np.concatenate([text.ids[start:end] for start, end in spans])
            widths = np.concatenate([text.widths[start:end] for start, end in spans])
            scorable = real[ids]
            tokens += int(scorable.sum())
            scored_bytes += int(widths[scorable].sum(dtype=np.int64))

            ids = np.concatenate([rest, ids])
            if last:
                padding = np.full(-ids.size % seq_len, tokenizer.pad_id, ids.dtype)
                ids = np.concatenate([ids, padding])
            whole = ids.size // seq_len
            block, rest = ids[: whole * seq_len].reshape(whole, seq_len), ids[whole * seq_len :]
            block.tofile(tokens_out)
            worth_having = rows + np.flatnonzero(real[block].any(axis=1))
            worth_having.astype("<i8").tofile(rows_out)
            rows += whole
            kept += worth_having.size
    return PackedSplit(kept, tokens, scored_bytes)


def _spans(passages: _Passages) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """Passages, some million tokens at a time, and whether these are the last."""
    groups = np.cumsum(passages.ends - passages.starts) // BATCH
    firsts = [*np.flatnonzero(np.diff(groups, prepend=-1)).tolist(), groups.size]
    for first, stop in itertools.pairwise(firsts):
        spans = zip(passages.starts[first:stop].tolist(), passages.ends[first:stop].tolist(), strict=True)
        yield stop == groups.size, list(spans)


def map_array(path: Path, dtype: "np.dtype[Any] | str") -> NDArray[Any]:
    """A file's numbers, read when they are used; an empty file, which can't be mapped, is an empty array."""
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
