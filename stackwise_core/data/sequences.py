"""A prepared corpus: rows of tokens in memory-mapped files, tokenised once and found again by the content's hash."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, field, frozen
from numpy.typing import NDArray
from xxhash import xxh3_128

from stackwise_core.config.model import DataConfig
from stackwise_core.data.corpus import documents
from stackwise_core.data.packing import ContentHash, Packing, map_array, pack, real_tokens, token_dtype
from stackwise_core.data.tokenizer import Tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.files import sync
from stackwise_core.writable import check_writable

FORMAT = 1
"""Of the files; part of the directory's name, so that a change of it prepares every corpus anew."""
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"
ABANDONED_AFTER = 24 * 60 * 60  # seconds in which an unfinished directory wasn't written to

_log = logging.getLogger(__name__)


@frozen
class Rows:
    """Some rows of a split."""

    tokens: NDArray[np.int32]
    """[n, seq_len]."""
    segments: NDArray[np.int32]
    """[n, seq_len]: 0 at padding and special tokens, else the document's number within the row, from 1 in order."""

    @property
    def scorable(self) -> NDArray[np.bool_]:
        """[n, seq_len]: which tokens may be masked and scored."""
        return self.segments > 0


@frozen(eq=False)
class Split:
    """Training or validation: a row of ``seq_len`` tokens is a sample, and its index the sample's id for good."""

    seq_len: int
    tokens: int
    """Tokens that can be scored; a tokenizer's special tokens, where the text has some, don't count."""
    bytes: int
    """UTF-8 bytes that these tokens stand for."""
    _numbers: NDArray[np.int64] = field(repr=False)
    _packed: NDArray[Any] = field(repr=False)
    _segment_starts: NDArray[np.int64] = field(repr=False)
    _real: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return self._numbers.size

    def evenly_spaced(self, count: int | None) -> NDArray[np.int64]:
        """Ids of so many samples, from the first to the last; None: of all."""
        count = len(self) if count is None else min(count, len(self))
        return np.unique(np.linspace(0, len(self) - 1, count).round().astype(np.int64))

    def rows(self, indices: NDArray[np.integer[Any]]) -> Rows:
        """Read rows by sample id, in the order asked for.

        Raises:
            IndexError: there is no such row.
        """
        numbers = self._numbers[indices]
        tokens = self._packed[numbers]
        positions = numbers[:, None] * self.seq_len + np.arange(self.seq_len)
        # Documents are numbered through the split here, and from 1 within the row below.
        document = np.searchsorted(self._segment_starts, positions, side="right") * self._real[tokens]
        seen = np.maximum.accumulate(document, axis=1)
        is_new = np.diff(seen, axis=1, prepend=0) > 0
        segments = np.cumsum(is_new, axis=1) * (document > 0)
        return Rows(tokens.astype(np.int32), segments.astype(np.int32))


@frozen(eq=False)
class Corpus:
    """Both splits of a corpus, and where they lie."""

    train: Split
    validation: Split
    documents: int
    """How many there are with text in them."""
    fingerprint: str
    """Hash of all that decides the rows: text, tokenizer, seq_len, validation_fraction."""
    directory: Path


def prepare(data: DataConfig, tokenizer: Tokenizer, progress: Callable[[int], None] | None = None) -> Corpus:
    """Find the tokenised corpus, or tokenise it.

    The text is read and hashed each time; the hash names a directory in ``data.tokens_directory``. What is there
    is checked whole (which takes less time than hashing the text did) and made anew if it is damaged. It is written
    beside and renamed when it is complete, so that processes may do this at the same time.

    Documents are cut into passages of at most 16 rows (and of a quarter of validation's share), and those with the
    lowest hashes are for validation, until ``data.validation_fraction`` of the tokens is reached: the same whatever
    the seed, and equal passages never on both sides. Passages keep their order; neighbours of one document on the
    same side stay one segment. In each split the stream is cut into rows, of which only the last is padded.

    Args:
        data: where the text is, and how it is to be cut.
        tokenizer: the one that ``data.tokenizer`` names.
        progress: called while tokenising with the number of the text's UTF-8 bytes done so far.

    Raises:
        UsageError: the corpus can't be read or is too small, or ``data.tokens_directory`` can't be a directory.
        StackwiseError: the files can't be written, or the text changed while it was read.
    """
    tokens_directory = Path(data.tokens_directory)
    if not tokens_directory.is_dir():  # one that is there may have these tokens already
        check_writable(tokens_directory, "data.tokens_directory")
    content = ContentHash()
    for _ in content.over(documents(data.corpus, text_field=data.text_field)):
        pass
    decisive = (FORMAT, content.digest(), tokenizer.fingerprint, data.seq_len, data.validation_fraction)
    fingerprint = hashlib.blake2b(repr(decisive).encode(), digest_size=16).hexdigest()
    directory = tokens_directory / fingerprint
    try:
        corpus = _open_if_whole(directory, tokenizer)
        return corpus or _make(directory, data, tokenizer, content, progress)
    except OSError as error:
        raise StackwiseError(
            f"{error.filename or directory}: tokens can't be written or read here (data.tokens_directory): "
            f"{error.strerror}"
        ) from error


def _make(
    directory: Path,
    data: DataConfig,
    tokenizer: Tokenizer,
    content: ContentHash,
    progress: Callable[[int], None] | None,
) -> Corpus:
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory.parent)
    beside = _beside(directory)
    beside.mkdir()
    try:
        again = ContentHash()
        packing = pack(
            again.over(documents(data.corpus, text_field=data.text_field)),
            tokenizer,
            beside,
            seq_len=data.seq_len,
            validation_fraction=data.validation_fraction,
            progress=progress,
        )
        if again.digest() != content.digest():
            raise StackwiseError(f"{data.corpus}: the text changed while it was being read; run again")
        _refuse_too_small(packing, data)
        _seal(beside, directory.name, data.seq_len, content.documents, packing)
        return _put_in_place(beside, directory, tokenizer)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _refuse_too_small(packing: Packing, data: DataConfig) -> None:
    train, validation = packing.train, packing.validation
    if train.tokens >= data.seq_len and (validation.rows or not data.validation_fraction):
        return
    short = (
        f"{train.tokens} for training, which needs data.seq_len = {data.seq_len} at least"
        if train.tokens < data.seq_len
        else "none for validation"
    )
    raise UsageError(
        f"{data.corpus}: too little text: of its {packing.all_tokens} tokens {short}, with data.validation_fraction = "
        f"{data.validation_fraction} (equal passages stay together). Expected some {3 * data.seq_len} tokens or more; "
        "add text or take a smaller data.seq_len"
    )


def _put_in_place(beside: Path, directory: Path, tokenizer: Tokenizer) -> Corpus:
    while True:
        try:
            beside.rename(directory)
        except OSError:
            if not directory.exists():
                raise
            corpus = _open_if_whole(directory, tokenizer)  # another process may have been faster
            if corpus:
                return corpus
            aside = _beside(directory)
            with contextlib.suppress(FileNotFoundError):  # where another process has put it aside
                directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            sync(directory.parent)
            corpus = _open_if_whole(directory, tokenizer)
            if corpus:
                return corpus
            raise StackwiseError(f"{directory}: what was just written here can't be read back; is the disk sound?")


def _beside(directory: Path) -> Path:
    return directory.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")


def _remove_abandoned(parent: Path) -> None:
    """Delete what processes left behind that were killed while they wrote."""
    for directory in parent.glob(f"{UNFINISHED}*"):
        try:
            last_written = max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
        except OSError:
            continue  # its own process is just done with it
        if time.time() - last_written > ABANDONED_AFTER:
            shutil.rmtree(directory, ignore_errors=True)


def _seal(directory: Path, fingerprint: str, seq_len: int, document_count: int, packing: Packing) -> None:
    """Make all files durable, and write the manifest that vouches for them last."""
    manifest: dict[str, Any] = {
        "fingerprint": fingerprint,
        "seq_len": seq_len,
        "documents": document_count,
        "train": asdict(packing.train),
        "validation": asdict(packing.validation),
        "files": {path.name: _size_and_hash(path) for path in sorted(directory.iterdir())},
    }
    manifest["xxh3_128"] = _hash_of_manifest(manifest)
    for name in manifest["files"]:
        sync(directory / name)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sync(directory / MANIFEST)
    sync(directory)


def _open_if_whole(directory: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus there, or None where there is none or it is damaged."""
    if not directory.exists():
        return None
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        claimed = manifest.pop("xxh3_128")
        fault = "" if claimed == _hash_of_manifest(manifest) else MANIFEST
        for name, size_and_hash in manifest["files"].items():
            if not fault and _size_and_hash(directory / name) != size_and_hash:
                fault = name
        splits = {} if fault else {n: _open_split(directory / n, manifest, tokenizer) for n in ("train", "validation")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        _log.warning("%s is damaged (%s) and is made anew", directory, fault)
        return None
    return Corpus(**splits, documents=manifest["documents"], fingerprint=directory.name, directory=directory)


def _open_split(path: Path, manifest: dict[str, Any], tokenizer: Tokenizer) -> Split:
    seq_len, counts = manifest["seq_len"], manifest[path.name]
    return Split(
        seq_len=seq_len,
        tokens=counts["tokens"],
        bytes=counts["bytes"],
        numbers=map_array(path.with_suffix(".rows"), "<i8"),
        packed=map_array(path.with_suffix(".tokens"), token_dtype(tokenizer)).reshape(-1, seq_len),
        segment_starts=map_array(path.with_suffix(".segments"), "<i8"),
        real=real_tokens(tokenizer),
    )


def _hash_of_manifest(manifest: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _size_and_hash(path: Path) -> dict[str, Any]:
    digest = xxh3_128()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"size": size, "xxh3_128": digest.hexdigest()}
