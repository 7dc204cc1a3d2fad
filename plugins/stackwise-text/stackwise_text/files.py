"""Files of text and the format of each: found by name, without opening a text or importing a reader."""

import glob
import os
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from stackwise_core.errors import UnavailableError, UsageError
from stackwise_text.options import BUILT_IN

Format = Literal["text", "jsonl", "parquet", "arrow", "topics"]
FORMATS: dict[str, Format] = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSED: tuple[Format, ...] = ("text", "jsonl")
"""Formats of which a file may be compressed as a whole."""
COMPRESSIONS = (".gz", ".zst")
ENDINGS = tuple(FORMATS)
EXPECTED = ".txt, .md, .jsonl (or one of these and .gz or .zst) or .parquet"


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
        """Whether an empty file of this format is a text without characters, not a damaged file."""
        return self.format in COMPRESSED and not self.compression


def built_in() -> CorpusFile:
    """Return the file of the built-in corpus.

    Raises:
        UnavailableError: this Python lacks it.
    """
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


def matching(pattern: str) -> list[Path]:
    """Return the files that match a glob, by path; each once, however many ways links lead to its folder."""
    real = cache(os.path.realpath)
    found: dict[tuple[str, str], str] = {}
    for match in sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count(os.sep), path)):
        if os.path.isfile(match):
            folder, name = os.path.split(match)
            found.setdefault((real(folder), name), match)
    return [Path(match) for match in sorted(found.values())]


def format_of(file: Path) -> tuple[Format, Any] | None:
    """Return a file's format and compression by its name, None of one that is no text."""
    stem, ending = os.path.splitext(file.name.lower())
    if ending in FORMATS:
        return FORMATS[ending], ""
    inner = FORMATS.get(os.path.splitext(stem)[1])
    return (inner, ending) if ending in COMPRESSIONS and inner in COMPRESSED else None


def corpus_file(file: Path, corpus: str) -> CorpusFile:
    """Return a file with its format.

    Args:
        corpus: the path or glob that led to it, for messages.

    Raises:
        UsageError: it is no text.
    """
    known = format_of(file)
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


def nearest_name(path: Path) -> str:
    """Return the end of the message about a missing path: the nearest name, or what the folder holds."""
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


_EXTRAS = {"parquet": ("pyarrow", "datasets"), "arrow": ("datasets", "datasets"), ".zst": ("zstandard", "zstd")}
"""Package that reads a format or compression, and the extra that installs it."""


def check_packages(files: Sequence[CorpusFile]) -> None:
    """Refuse files whose reader isn't installed.

    Raises:
        UnavailableError: a package isn't installed.
    """
    needed = {need: file for file in reversed(files) for need in (file.format, file.compression) if need in _EXTRAS}
    for need, file in needed.items():
        package, extra = _EXTRAS[need]
        if not (_installed(package) or (need == ".zst" and _installed("compression.zstd"))):
            raise UnavailableError(
                f"{file.path}: reading it needs the package {package}, which is not installed: "
                f'pip install "stackwise-text[{extra}]"'
            )


def _installed(package: str) -> bool:
    """Return whether a package is installed. A mere folder of that name isn't one."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
