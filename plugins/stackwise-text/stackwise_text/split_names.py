"""Splits by the names of files and folders, as the library ``datasets`` recognises them (its ``data_files.py``)."""

import re
from collections.abc import Iterable
from pathlib import PurePath

KEYWORDS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "dev", "val"),
    "train": ("train", "training"),
}
"""Words that stand for a split. A name with several belongs to the first: held-out text is never trained on."""
_SEPARATOR = "[-._ 0-9]"
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
"""A shard as ``push_to_hub`` names it, whatever the split is called."""


def _patterns(beginning: str, end: str) -> dict[str, re.Pattern[str]]:
    return {
        split: re.compile(f"{beginning}(?:{'|'.join(words)}){end}", re.IGNORECASE) for split, words in KEYWORDS.items()
    }


_FOLDERS = _patterns(f"(?:.*{_SEPARATOR})?", f"(?:{_SEPARATOR}.*)?")
_FILES = _patterns(f"(?:.*{_SEPARATOR})?", f"{_SEPARATOR}.*")


def split_by_shard(path: PurePath) -> str | None:
    """Return the split that a file's name as a shard says; None: it is no shard.

    Args:
        path: relative to the data set's directory, as in all of these functions.
    """
    shard = _SHARD.fullmatch(path.as_posix())
    return shard[1] if shard else None


def split_by_word(path: PurePath) -> str | None:
    """Return the split that the innermost folder so named says, or else the file's own name; None: neither does."""
    for folder in reversed(path.parts[:-1]):
        if split := _first(_FOLDERS, folder):
            return split
    return _first(_FILES, path.name)


def like(split: str, names: Iterable[str]) -> str | None:
    """Return the name of the split that means ``"train"``, ``"validation"`` or ``"test"``: that word or a synonym."""
    known = {name.lower(): name for name in names}
    return next((known[word] for word in (split, *KEYWORDS[split]) if word in known), None)


def _first(patterns: dict[str, re.Pattern[str]], name: str) -> str | None:
    return next((split for split, pattern in patterns.items() if pattern.fullmatch(name)), None)
