"""Which files a corpus is, and in which format each of them is: found without opening a text, or importing a reader."""

import glob
import json
import os
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from stackwise_core.errors import UnavailableError, UsageError

BUILT_IN = "python-docs"
Format = Literal["text", "jsonl", "parquet", "arrow", "topics"]
FORMATS: dict[str, Format] = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSED: tuple[Format, ...] = ("text", "jsonl")
"""Formats of which a file may be compressed as a whole."""
COMPRESSIONS = (".gz", ".zst")
ENDINGS = tuple(FORMATS)
EXPECTED = ".txt, .md, .jsonl (or one of these and .gz or .zst) or .parquet"

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""What ``save_to_disk`` writes: the first two beside a data set, the last above several."""


@frozen
class CorpusFile:
    """A file of a corpus."""

    path: Path
    format: Format
    compression: Literal["", ".gz", ".zst"] = ""

    @property
    def has_fields(self) -> bool:
        """Whether the text is in a field or a column, among others."""
        return self.format in ("jsonl", "parquet", "arrow")

    @property
    def may_have_no_bytes(self) -> bool:
        """Whether a file of no bytes is a text without a character; of another kind it is damaged."""
        return self.format in COMPRESSED and not self.compression


def find_files(corpus: str) -> list[CorpusFile]:
    """The files of a corpus, sorted by path.

    Args:
        corpus: ``"python-docs"``; or the path of a file, of a directory (searched recursively, without hidden files
            and other endings) or of one that ``datasets`` saved; or a glob, in which ``**`` is any depth, and all
            matches must have a known ending.

    Raises:
        UsageError: nothing is there, or something else.
        UnavailableError: a package that reads one of the formats isn't there.
    """
    path = Path(corpus)
    if corpus == BUILT_IN:
        found = [_topics()]
    elif path.is_dir() and (path / SPLITS).is_file():
        raise UsageError(_several_splits(path))
    elif path.is_dir() and (path / STATE).is_file() and (path / INFO).is_file():
        found = _saved(path)
    else:
        found = [_known(file, corpus) for file in _text_files(path, corpus)]
    _check_packages(found)
    return found


def _topics() -> CorpusFile:
    try:
        spec = find_spec("pydoc_data.topics")
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        raise UnavailableError(
            f'the corpus "{BUILT_IN}" is read from pydoc_data.topics, which this Python lacks; '
            "name a file or a directory of text as data.corpus"
        )
    return CorpusFile(Path(spec.origin), "topics")


def _text_files(path: Path, corpus: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = _glob(corpus) if glob.has_magic(corpus) else []
        if not found:
            raise UsageError(f"{corpus}: nothing is there{_nearest_name(path)}")
        return found
    inside = _glob(os.path.join(glob.escape(corpus), "**", "*"))
    found = [file for file in inside if _format(file)]
    if not found:
        others = ", ".join(sorted({file.suffix or file.name for file in inside})[:5])
        saved = next((file.parent for file in inside if file.name in (STATE, SPLITS)), None)
        raise UsageError(
            f"{corpus}: expected files that end in {EXPECTED}, in this directory or below it, found "
            + (f"only {others}" if others else "no files at all")
            + (f"; {saved} was saved by the library datasets: name it" if saved else "")
        )
    return found


def _glob(pattern: str) -> list[Path]:
    """The files that match, by path; in a folder that links lead to in several ways, as into itself, each but once."""
    real = cache(os.path.realpath)
    found: dict[tuple[str, str], str] = {}
    for match in sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count(os.sep), path)):
        if os.path.isfile(match):
            folder, name = os.path.split(match)
            found.setdefault((real(folder), name), match)
    return [Path(match) for match in sorted(found.values())]


def _format(file: Path) -> tuple[Format, Any] | None:
    """A file's format and compression by its name, None of one that is no text."""
    stem, ending = os.path.splitext(file.name.lower())
    if ending in FORMATS:
        return FORMATS[ending], ""
    inner = FORMATS.get(os.path.splitext(stem)[1])
    return (inner, ending) if ending in COMPRESSIONS and inner in COMPRESSED else None


def _known(file: Path, corpus: str) -> CorpusFile:
    known = _format(file)
    if known is None:
        ending = file.suffix.lower()
        if ending in COMPRESSIONS:
            ending = "".join(file.suffixes[-2:])
        nearest = get_close_matches(ending, ENDINGS, n=1)
        raise UsageError(
            f"{file}: expected a file that ends in {EXPECTED}, found "
            + (f'"{ending}"' if ending else "no ending")
            + (f'; the nearest is "{nearest[0]}"' if nearest else "")
            + (f"; narrow the glob {corpus}" if str(file) != str(Path(corpus)) else "")
        )
    return CorpusFile(file, *known)


def _nearest_name(path: Path) -> str:
    """What the message about a missing path goes on to say."""
    folder, missing = path.parent, path.name
    while glob.has_magic(str(folder)) or not folder.is_dir():
        if folder == folder.parent:
            return ""
        folder, missing = folder.parent, folder.name
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        return f"; {folder} can't be read ({error.strerror})"
    nearest = get_close_matches(missing, [*names, BUILT_IN], n=1, cutoff=0.5)
    if nearest == [BUILT_IN]:
        return f'; the built-in corpus is called "{BUILT_IN}"'
    if nearest:
        return f"; the nearest name is {folder / nearest[0]}"
    return f"; {folder} holds " + (", ".join(names[:5] + ["..."] * (len(names) > 5)) or "nothing")


def _several_splits(path: Path) -> str:
    splits = _json(path / SPLITS).get("splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    example = f", such as {path / names[0]}" if names else ""
    return (
        f"{path}: expected one split, found a DatasetDict of {', '.join(names[:8]) or 'none'}: name a split's own "
        f"directory{example}"
    )


def _saved(directory: Path) -> list[CorpusFile]:
    """The Arrow files of a data set that ``datasets`` saved, in its own order."""
    listed = _json(directory / STATE).get("_data_files")
    if not listed or not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UsageError(f"{directory / STATE}: expected a list _data_files of file names, as datasets writes it")
    found = []
    for entry in listed:
        name = entry.get("filename")
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
            raise UsageError(f"{directory / STATE}: expected the names of files beside it, found {str(name)[:80]!r}")
        if not (directory / name).is_file():
            raise UsageError(f"{directory / name}: {STATE} names it, but nothing is there; was all of it copied?")
        found.append(CorpusFile(directory / name, "arrow"))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: expected JSON as the library datasets writes it: {error!s:.200}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected JSON as the library datasets writes it, found no object")
    return content


_EXTRAS = {"parquet": ("pyarrow", "datasets"), "arrow": ("datasets", "datasets"), ".zst": ("zstandard", "zstd")}
"""By format or compression: the package that reads it, and the extra that brings that."""


def _check_packages(files: Sequence[CorpusFile]) -> None:
    needed = {need: file for file in reversed(files) for need in (file.format, file.compression) if need in _EXTRAS}
    for need, file in needed.items():
        package, extra = _EXTRAS[need]
        if not (_installed(package) or (need == ".zst" and _installed("compression.zstd"))):
            raise UnavailableError(
                f"{file.path}: reading it needs the package {package}, which is not installed: "
                f'pip install "stackwise-core[{extra}]"'
            )


def _installed(package: str) -> bool:
    """Whether a package is there; a mere folder of that name isn't one."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
