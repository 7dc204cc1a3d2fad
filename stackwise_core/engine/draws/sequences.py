"""A prepared corpus: rows of tokens in memory-mapped files, tokenised once and found again by the content's hash."""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from attrs import asdict, define, evolve, field, frozen
from numpy.typing import NDArray
from xxhash import xxh3_128

from stackwise_core.config.model import DataConfig
from stackwise_core.engine.text.content_index import ContentIndex
from stackwise_core.engine.text.fingerprint import FORMAT, fingerprint
from stackwise_core.engine.text.mapped import map_array
from stackwise_core.engine.text.packing import PackedSplit, Packing, pack
from stackwise_core.engine.text.sources import share_held_out
from stackwise_core.engine.text.text_source import Source
from stackwise_core.engine.text.token_stream import Coverage, Text, real_tokens, token_dtype
from stackwise_core.engine.tokenizer.predictable import predictable
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.system.files import EXHAUSTED, sync, unreadable
from stackwise_core.system.writable import check_writable

MANIFEST = "manifest.json"
INDICES = ".contents"
"""Directory of what is remembered of the texts' own files."""
_FILES = {f"{split}.{kind}" for split in ("train", "validation") for kind in ("tokens", "segments", "rows", "alone")}
UNFINISHED = ".unfinished-"
ABANDONED_AFTER = 24 * 60 * 60  # seconds in which an unfinished directory wasn't written to

Progress = Callable[[int, float], None]
"""Function that is called with the UTF-8 bytes of text tokenised so far, and their share of all, from 0 to 1."""

T = TypeVar("T")
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
        """Mask [n, seq_len] of the tokens that may be masked and scored."""
        return self.predictable(causal=False)

    def predictable(self, *, causal: bool) -> NDArray[np.bool_]:
        """Return which tokens there are to predict, [n, seq_len]."""
        return predictable(self.segments, causal=causal)


@frozen(eq=False)
class Split:
    """Training or validation: a row of ``seq_len`` tokens is a sample, and its index the sample's id for good."""

    seq_len: int
    tokens: int
    """Tokens that can be scored; a tokenizer's special tokens, where the text has some, don't count."""
    bytes: int
    """UTF-8 bytes that these tokens stand for."""
    coverage: Coverage
    """Coverage of all text, of which this is a part."""
    _numbers: NDArray[np.int64] = field(repr=False)
    _alone: NDArray[np.int64] = field(repr=False)
    _packed: NDArray[Any] = field(repr=False)
    _segment_starts: NDArray[np.int64] = field(repr=False)
    _real: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return self._numbers.size

    def causal(self) -> "Split":
        """Return the samples in which a token comes right after another one of its document."""
        if not self._alone.size:
            return self
        return evolve(self, numbers=self._numbers[~np.isin(self._numbers, self._alone)])

    def evenly_spaced(self, count: int | None) -> NDArray[np.int64]:
        """Return the ids of so many samples, from the first to the last; None: of all."""
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


@frozen
class SourceCounts:
    """Counts of a text's contribution."""

    name: str
    """A source's name, or where the text is."""
    weight: float
    documents: int
    """Number of documents with a token."""
    train: PackedSplit
    validation: PackedSplit


@frozen(eq=False)
class TokenisedCorpus:
    """Both splits of a tokenised corpus, and their directory."""

    train: Split
    validation: Split
    sources: tuple[SourceCounts, ...]
    """One a text: ``data.corpus`` or each of ``data.sources``, and ``data.validation`` last."""
    left_out: int
    """Tokens of training passages that equal one of ``data.validation``, and so are in neither split."""
    fingerprint: str
    """Hash of all that decides the rows: text, weights, tokenizer, seq_len, validation_fraction."""
    directory: Path
    notes: tuple[str, ...] = ()
    """Notes on which splits of data sets these are, and what else lies there and isn't read."""
    alone: int = 0
    """Rows that are no samples, since causal language modelling has nothing to predict in them."""

    def causal(self) -> "TokenisedCorpus":
        """Return the corpus without the samples in which no token comes right after another one of its document."""
        sources = [
            evolve(source, train=source.train.causal(), validation=source.validation.causal())
            for source in self.sources
        ]
        train, validation = self.train.causal(), self.validation.causal()
        alone = len(self.train) + len(self.validation) - len(train) - len(validation)
        return evolve(self, train=train, validation=validation, sources=tuple(sources), alone=alone)

    @property
    def documents(self) -> int:
        """Number of documents with a token."""
        return sum(source.documents for source in self.sources)


def tokenise(
    sources: Sequence[Source],
    data: DataConfig,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    *,
    causal: bool = False,
) -> TokenisedCorpus:
    """Find the tokens of some texts, or tokenise them.

    A hash of what decides the texts names a directory in ``data.tokens_directory``; files that are as they were in the
    last run aren't read for it (``content_index``). What is there is checked whole and made anew if it is damaged. It
    is written beside and renamed when it is complete, so that processes may do this at the same time.

    Documents are cut into passages of at most 16 rows (and of a quarter of validation's share), and those with the
    lowest hashes are for validation, until ``data.validation_fraction`` of the tokens is reached: the same whatever
    the seed, and equal passages never on both sides. With ``data.validation`` all of that text is, and passages that
    equal one of its own are left out of training. Passages keep their order; neighbours of one document on the same
    side stay one segment. In each split each text's stream is cut into rows, of which only the last is padded. A text
    whose weight is 2 has each training row as two samples; with 2.5 the rows of a part of it, a stream of its own, are
    three samples each.

    Args:
        sources: as ``find_sources`` finds them.
        data: how they are to be cut.
        tokenizer: the one that ``data.tokenizer`` names.
        progress: told while tokenising how many UTF-8 bytes of text are done, and what share that is of all.
        causal: whether each token is predicted from those before it. A row without a token that has one of
            its document before it is no sample then.

    Raises:
        UsageError: the corpus can't be read, is too small or has nothing to predict, or ``data.tokens_directory``
            can't be a directory.
        UnavailableError: a package that reads the corpus isn't there.
        StackwiseError: the files can't be written, or the text changed while it was read.
    """
    tokens_directory = Path(data.tokens_directory).absolute()
    if not tokens_directory.is_dir():  # one that is there may have these tokens already
        check_writable(tokens_directory, "data.tokens_directory")
    index, name = _named(sources, data, tokenizer)
    directory = tokens_directory / name
    try:
        corpus = _open_if_whole(directory, sources, tokenizer)
        if corpus is None:
            corpus = _make(directory, sources, data, tokenizer, index, progress)
    except BrokenPipeError:  # whoever is told of the progress prints it, and nobody reads
        raise
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise StackwiseError(
            f"{error.filename or directory}: tokens can't be written or read here (data.tokens_directory): "
            f"{error.strerror}"
        ) from error
    index.save()
    corpus = evolve(corpus, notes=tuple(source.note for source in sources if source.note))
    if causal:
        corpus = corpus.causal()
        _refuse_nothing_to_predict(corpus, sources, data)
    return corpus


def fingerprint_now(sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer) -> str:
    """Return the fingerprint of these texts as they are now; files that are as they were aren't read.

    Raises:
        UsageError: a file can't be read.
        StackwiseError: a file changed while it was read.
    """
    index, name = _named(sources, data, tokenizer)
    index.save()
    return name


def kept_validation(data: DataConfig, tokenizer: Tokenizer, fingerprint: str) -> Split | None:
    """Return the validation split of tokens that were made before, whatever has become of their text.

    Returns:
        None: the tokens aren't there any more, or are damaged.
    """

    def validation(manifest: dict[str, Any]) -> Split | None:
        of_now = manifest.get("format") == FORMAT
        return _open_split(directory / "validation", manifest, tokenizer) if of_now else None

    directory = Path(data.tokens_directory).absolute() / fingerprint
    return _if_whole(directory, validation, "and isn't used")


def _named(sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer) -> tuple[ContentIndex, str]:
    """Return what is known of the files now, and the fingerprint that follows."""
    index = ContentIndex.open(Path(data.tokens_directory).absolute() / INDICES / f"{_name_of(sources)}.json")
    return index, _fingerprint(sources, data, tokenizer, index)


def _fingerprint(sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer, index: ContentIndex) -> str:
    files = [file for source in sources for file in source.files()]
    try:
        hashes = dict(zip(files, index.hash_all(files), strict=True))
    except OSError as error:
        raise unreadable(Path(error.filename or data.tokens_directory), error) from None
    return fingerprint(sources, hashes, data, tokenizer)


def _name_of(sources: Sequence[Source]) -> str:
    """Return the name of these texts' index: it depends on where they are, not on what is there now."""
    where = [os.path.abspath(source.where) for source in sources]
    return xxh3_128(json.dumps(where).encode()).hexdigest()


def _make(
    directory: Path,
    sources: Sequence[Source],
    data: DataConfig,
    tokenizer: Tokenizer,
    index: ContentIndex,
    progress: Progress | None,
) -> TokenisedCorpus:
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory.parent)
    beside = _beside(directory)
    beside.mkdir()
    reading = _Reading(sum(source.size() for source in sources))
    texts = [
        Text(source.documents(reading.consumed), source.named.weight, source.named.is_validation) for source in sources
    ]
    try:
        packing = pack(
            texts,
            tokenizer,
            beside,
            seq_len=data.seq_len,
            validation_fraction=share_held_out(sources, data),
            progress=None if progress is None else lambda done: progress(done, reading.share),
        )
        changed = index.changed()
        if changed is not None:
            raise StackwiseError(f"{changed}: the file changed while it was being read; run again when it is finished")
        if _fingerprint(sources, data, tokenizer, index) != directory.name:
            corpora = ", ".join(dict.fromkeys(source.where for source in sources))
            raise StackwiseError(f"{corpora}: the text changed while it was being read; run again when it is finished")
        _refuse_too_small(packing, sources, data)
        _seal(beside, directory.name, data.seq_len, packing)
        return _put_in_place(beside, directory, sources, tokenizer)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@define
class _Reading:
    """Progress of reading the files."""

    size: int
    done: int = 0

    def consumed(self, size: int) -> None:
        self.done += size

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.size) if self.size else 1.0


def _refuse_too_small(packing: Packing, sources: Sequence[Source], data: DataConfig) -> None:
    coverage, known = packing.coverage, " that the tokenizer has a token for" if packing.coverage.dropped else ""
    for text, source in zip(packing.texts, sources, strict=True):
        if not text.documents:
            raise UsageError(f"{source.where}: expected text, but there is not one character in it{known}")
    train, validation = packing.train, packing.validation
    unknown = f"{100 * coverage.unknown / coverage.bytes:.3g} % of the text is unknown to {data.tokenizer}"
    corpora = ", ".join(dict.fromkeys(source.where for source in sources))
    if all(source.named.is_validation for source in sources):  # measured on, however short it is
        if not validation.rows:
            because = f", and {unknown}" if coverage.unknown else ""
            raise UsageError(
                f"{corpora}: none of its {packing.all_tokens} tokens can be scored: all are special{because}"
            )
        return
    measured = ", ".join(source.named.name for source in sources if source.named.is_validation)
    share = share_held_out(sources, data)
    if train.tokens >= data.seq_len and (validation.rows or not (share or measured)):
        return
    short = (
        f"{train.tokens} for training, which needs data.seq_len = {data.seq_len} at least"
        if train.tokens < data.seq_len
        else "none for validation"
    )
    if 2 * coverage.unknown > coverage.bytes:
        raise UsageError(
            f"{corpora}: {unknown} (data.tokenizer), and of its {packing.all_tokens} tokens {short}. Expected a "
            'tokenizer for such text, or "bytes"'
        )
    named = measured if data.validation is None else "data.validation"
    if packing.left_out and not train.tokens:
        raise UsageError(
            f"{corpora}: all of it is in {named} too, and so none is left for training. Name another text "
            "as data.validation, or take a share with data.validation_fraction"
        )
    if measured:
        raise UsageError(
            f"{corpora}: too little text: of its {packing.all_tokens} tokens {short}; {packing.left_out} are left out, "
            f"since {named} has equal passages. Add text or take a smaller data.seq_len"
        )
    raise UsageError(
        f"{corpora}: too little text: of its {packing.all_tokens} tokens {short}, with data.validation_fraction = "
        f"{share} (equal passages stay together). Expected some {3 * data.seq_len} tokens or more; "
        "add text or take a smaller data.seq_len"
    )


def _refuse_nothing_to_predict(corpus: TokenisedCorpus, sources: Sequence[Source], data: DataConfig) -> None:
    own = [each.where for each in sources if each.named.is_validation]
    trained_on = [each.where for each in sources if not each.named.is_validation]
    share = share_held_out(sources, data)
    if trained_on and not len(corpus.train):
        texts = ", ".join(dict.fromkeys(trained_on))
    elif (own or share > 0) and not len(corpus.validation):
        texts = ", ".join(own) or f"the validation split (data.validation_fraction = {share})"
    else:
        return
    raise UsageError(
        f"{texts}: nothing to predict with this objective, which predicts each token from those before it in its "
        "document: no token here has one before it. Expected documents of two tokens or more"
    )


def _put_in_place(beside: Path, directory: Path, sources: Sequence[Source], tokenizer: Tokenizer) -> TokenisedCorpus:
    while True:
        try:
            beside.rename(directory)
        except OSError:
            if not directory.exists():
                raise
            corpus = _open_if_whole(directory, sources, tokenizer)  # another process may have been faster
            if corpus:
                return corpus
            aside = _beside(directory)
            with contextlib.suppress(FileNotFoundError):  # where another process has put it aside
                directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            sync(directory.parent)
            corpus = _open_if_whole(directory, sources, tokenizer)
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


def _seal(directory: Path, fingerprint: str, seq_len: int, packing: Packing) -> None:
    """Make all files durable, and write the manifest that vouches for them last."""
    manifest: dict[str, Any] = {
        "fingerprint": fingerprint,
        "format": FORMAT,
        "seq_len": seq_len,
        "train": asdict(packing.train),
        "validation": asdict(packing.validation),
        "sources": [asdict(text) for text in packing.texts],
        "left_out": packing.left_out,
        "coverage": asdict(packing.coverage),
        "files": {path.name: _size_and_hash(path) for path in sorted(directory.iterdir())},
    }
    manifest["xxh3_128"] = _hash_of_manifest(manifest)
    for name in manifest["files"]:
        sync(directory / name)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sync(directory / MANIFEST)
    sync(directory)


def _open_if_whole(directory: Path, sources: Sequence[Source], tokenizer: Tokenizer) -> TokenisedCorpus | None:
    """Return the tokenised corpus in a directory; None if there is none, or it is damaged."""

    def corpus(manifest: dict[str, Any]) -> TokenisedCorpus:
        return TokenisedCorpus(
            train=_open_split(directory / "train", manifest, tokenizer),
            validation=_open_split(directory / "validation", manifest, tokenizer),
            sources=tuple(
                SourceCounts(
                    source.named.name,
                    source.named.weight,
                    counts["documents"],
                    PackedSplit(**counts["train"]),
                    PackedSplit(**counts["validation"]),
                )
                for source, counts in zip(sources, manifest["sources"], strict=True)
            ),
            left_out=manifest["left_out"],
            fingerprint=directory.name,
            directory=directory,
        )

    return _if_whole(directory, corpus, "and is made anew")


def _if_whole(directory: Path, opened: Callable[[dict[str, Any]], T], otherwise: str) -> T | None:
    """Return what is made of a manifest whose files are all as they were written.

    Args:
        otherwise: what a warning says of a directory that is damaged, for which None is returned.
    """
    if not directory.exists():
        return None
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        claimed = manifest.pop("xxh3_128")
        fault = "" if claimed == _hash_of_manifest(manifest) else MANIFEST
        if not fault and not manifest["files"].keys() >= _FILES:
            return None  # an earlier version made it
        for name, size_and_hash in manifest["files"].items():
            if not fault and _size_and_hash(directory / name) != size_and_hash:
                fault = name
        if not fault and "coverage" not in manifest:
            return None  # an earlier version made it
        if not fault:
            return opened(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise
        fault = f"{type(error).__name__}: {error}"
    _log.warning("%s is damaged (%s) %s", directory, fault, otherwise)
    return None


def _open_split(path: Path, manifest: dict[str, Any], tokenizer: Tokenizer) -> Split:
    seq_len, counts = manifest["seq_len"], manifest[path.name]
    return Split(
        seq_len=seq_len,
        tokens=counts["tokens"],
        bytes=counts["bytes"],
        coverage=Coverage(**manifest["coverage"]),
        numbers=map_array(path.with_suffix(".rows"), "<i8"),
        alone=map_array(path.with_suffix(".alone"), "<i8"),
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
