"""The card of a data set from a hub: subsets and splits, from the YAML at the top of README.md."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from reprlib import repr as shown  # what a few lines of YAML stand for may be endless
from typing import Any

from attrs import frozen

from stackwise_core.errors import UsageError
from stackwise_core.system.files import unreadable

CARD = "README.md"
BESIDE_CARD = ".huggingface.yaml"
"""A file that may hold the same YAML, and wins over the card's."""
CARD_KEYS = frozenset(
    {
        "annotations_creators",
        "configs",
        "dataset_info",
        "language_creators",
        "license",
        "multilinguality",
        "pretty_name",
        "size_categories",
        "source_datasets",
        "task_categories",
        "task_ids",
    }
)
"""Keys of which a data set's card has one at least, and a page of documentation none."""
_CONFIGS = re.compile(r"^configs\s*:", re.MULTILINE)


@frozen
class Subset:
    """One of the data sets that a card describes; ``configs`` has one entry each."""

    name: str
    patterns: Mapping[str, tuple[str, ...]] | None
    """Globs by split, relative to the folder; None: the files' names say which split they are."""
    folder: str
    is_default: bool


@frozen
class Card:
    """A data set's card."""

    path: Path
    subsets: tuple[Subset, ...]
    """None, where it says nothing of files."""


def read_card(readme: Path) -> Card | None:
    """Read the card of a directory; None: its README.md isn't one.

    Args:
        readme: the README.md, which need not be there.

    Raises:
        UsageError: what it says of files can't be read, or isn't what ``datasets`` takes.
    """
    beside = readme.with_name(BESIDE_CARD)
    content, path = _front_matter(readme), readme
    if beside.is_file():
        own = _parsed(_text(beside), beside, 0)
        content, path = {**(content or {}), **(own or {})}, beside if own and "configs" in own else readme
    if content is None or not CARD_KEYS & content.keys():
        return None
    return Card(path, _subsets(content.get("configs"), path))


def _front_matter(readme: Path) -> dict[Any, Any] | None:
    try:
        with readme.open("rb") as stream:
            if stream.read(6).removeprefix(b"\xef\xbb\xbf")[:3] != b"---":
                return None
    except OSError:
        return None
    lines = _text(readme).splitlines()
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if len(ends) < 2 or ends[0] != 0:
        return None
    return _parsed("\n".join(lines[1 : ends[1]]), readme, 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected the card of a data set in UTF-8") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _parsed(text: str, path: Path, before: int) -> dict[Any, Any] | None:
    """Return the YAML's mapping; None where it is none, or can't be read and isn't about files.

    Args:
        before: lines of the file that precede the text.
    """
    import yaml

    loader_class = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # cards of a megabyte are common
    try:
        content = loader_class(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if not _CONFIGS.search(text):
            return None  # a page that begins with a rule
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1 + before}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path}{line}: expected YAML that says which files are which split: {reason:.200}") from None
    return content if isinstance(content, dict) else None


def _subsets(configs: Any, path: Path) -> tuple[Subset, ...]:
    if not configs:
        return ()
    if not isinstance(configs, list) or not all(isinstance(entry, dict) for entry in configs):
        raise UsageError(f"{path}: configs: expected a list of tables with config_name and data_files")
    subsets: list[Subset] = []
    for number, entry in enumerate(configs):
        where, name = f"{path}: configs[{number}]", entry.get("config_name")
        if not isinstance(name, str) or not name:
            raise UsageError(f"{where}.config_name: expected a name, found {shown(name):.80}")
        if any(subset.name == name for subset in subsets):
            raise UsageError(f'{where}.config_name: "{name}" is there twice')
        folder = entry.get("data_dir") or ""
        if not isinstance(folder, str) or not _stays_inside(folder):
            raise UsageError(f"{where}.data_dir: expected a folder of this directory, found {shown(folder):.80}")
        patterns = _patterns(entry.get("data_files"), f"{where}.data_files")
        subsets.append(Subset(name, patterns, folder, entry.get("default") is True))
    return tuple(subsets)


def _patterns(data_files: Any, where: str) -> Mapping[str, tuple[str, ...]] | None:
    """Return globs by split from any of the forms that ``datasets`` takes."""
    if data_files is None:
        return None
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(split, str) or not isinstance(paths, list) or not paths:
            raise UsageError(f"{where}: expected a path, or a list of split and path, found {shown(entry):.80}")
        if split in found:
            raise UsageError(f'{where}: the split "{split}" is there twice')
        for path in paths:
            if not isinstance(path, str) or not _stays_inside(path):
                raise UsageError(f"{where}: expected paths of files in this directory, found {shown(path):.80}")
        found[split] = tuple(paths)
    return found


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return "://" not in path and "\0" not in path and not parts.is_absolute() and ".." not in parts.parts
