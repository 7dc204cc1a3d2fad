"""The splits of a directory that is a data set: by its card, by ``datasets``, or by the names of files and folders."""

import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

from stackwise_core.errors import UsageError
from stackwise_core.registry.nearest import nearest
from stackwise_text.card import CARD, Card, Subset, read_card
from stackwise_text.files import EXPECTED, CorpusFile, corpus_file, format_of, matching
from stackwise_text.saved_directories import SPLITS, STATE, is_saved_dict, saved_files, saved_splits
from stackwise_text.split_names import split_by_shard, split_by_word

ABOUT = frozenset(
    {
        "changelog",
        "citation",
        "code_of_conduct",
        "contributing",
        "copying",
        "licence",
        "license",
        "notice",
        "readme",
        "requirements",
        "security",
    }
)
"""Names, without ending, of files that tell of a data set and aren't its text."""
_NEVER_MATCHED = frozenset({CARD, "config.json", "dataset_info.json", "dataset_infos.json", SPLITS})
"""Files that a card's glob doesn't mean, unless it names them; as ``datasets`` has it."""

Files = Callable[[], Sequence[CorpusFile]]
"""Finds the files of a split, when they are needed: what isn't read need not be there."""


@frozen
class DataSet:
    """A directory of text as its own splits."""

    directory: Path
    splits: Mapping[str, Files]
    """Files of each split, by its name. Empty: it has no splits, and ``files`` are its text."""
    files: tuple[CorpusFile, ...] = ()
    beside: tuple[Path, ...] = ()
    """Files in it that are in no split, or aren't text."""
    source: str = ""
    """Place that names its splits, for messages."""
    may_overlap: bool = False
    """Whether a file may be in several splits."""
    subset: str = ""
    other_subsets: tuple[str, ...] = ()


def read_data_set(directory: Path, part: str) -> tuple[DataSet, str]:
    """Find the splits of a directory.

    Args:
        part: ``"SUBSET"``, ``"SPLIT"``, ``"SUBSET/SPLIT"``, or nothing.

    Returns:
        The data set, and what of ``part`` names a split.

    Raises:
        UsageError: there is no text, or it has several subsets and none is chosen, or its card can't be read.
    """
    if is_saved_dict(directory):
        splits = {name: partial(_saved, directory / name) for name in saved_splits(directory)}
        return DataSet(directory, splits, source=str(directory / SPLITS)), part
    inside = matching(os.path.join(glob.escape(str(directory)), "**", "*"))
    card = read_card(directory / CARD)
    if card is not None and card.subsets:
        subset, split = _chosen(card, part, directory)
        return _by_card(directory, card, subset, inside), split
    cards = {file: card for file in inside if file.name == CARD and (card := read_card(file))}
    for below in cards.values():
        if below.subsets:
            raise UsageError(
                f"{directory}: {below.path} is the card of a data set, which says what of it is for training: "
                f"name {below.path.parent} itself, each of several as a source of its own ([data.sources.NAME])"
            )
    texts = [file for file in inside if format_of(file) and file not in cards]
    return _by_names(directory, texts, inside), part


def _saved(directory: Path) -> Sequence[CorpusFile]:
    return saved_files(directory) if directory.is_dir() else []


def _chosen(card: Card, part: str, directory: Path) -> tuple[Subset, str]:
    """Return the subset that is meant, and what of ``part`` names a split."""
    by_name = {subset.name: subset for subset in card.subsets}
    before, _, after = part.rpartition("/")
    for name, split in ((part, ""), (before, after)):
        if name in by_name:
            return by_name[name], split
    defaults = [each for each in card.subsets if each.is_default or each.name == "default"]
    if len(card.subsets) == 1 or len(defaults) == 1:
        return (defaults or card.subsets)[0], part
    names = list(by_name)
    near = nearest(before or part, names) if part else None
    raise UsageError(
        f"{directory}: expected one subset, found {len(names)} in {card.path}: {listed(names, 12)}. "
        + (f'There is no "{part}". ' if part else "")
        + f'Name one, such as "{directory}#{near or names[0]}"'
    )


def _by_card(directory: Path, card: Card, subset: Subset, inside: Sequence[Path]) -> DataSet:
    folder = directory / subset.folder
    others = tuple(each.name for each in card.subsets if each is not subset)
    if subset.patterns is None:
        within = [file for file in inside if file.is_relative_to(folder) and format_of(file) and file.name != CARD]
        found = _by_names(folder, within, within)
        splits = dict(found.splits) or {"train": lambda: found.files}
    else:
        splits = {split: partial(_matched, folder, patterns) for split, patterns in subset.patterns.items()}
    beside = [] if others else _all_but(inside, (file for files in splits.values() for file in files()))
    return DataSet(
        directory,
        splits,
        beside=tuple(beside),
        source=str(card.path),
        may_overlap=True,
        subset=subset.name,
        other_subsets=others,
    )


def _matched(folder: Path, patterns: Iterable[str]) -> list[CorpusFile]:
    """Return the text files that a card's globs mean."""
    matches = {
        file
        for pattern in patterns
        for file in matching(os.path.join(glob.escape(str(folder)), pattern))
        if file.name not in _NEVER_MATCHED or file.name == os.path.basename(pattern)
    }
    return [corpus_file(file, str(folder)) for file in sorted(matches, key=str) if format_of(file)]


def _by_names(directory: Path, texts: Sequence[Path], inside: Sequence[Path]) -> DataSet:
    """Divide files by their names; a folder of none that stand for splits is one text.

    Pages of documentation are often called ``training.md``. So names of ``.md`` files count only where every text is
    named for a split.
    """
    about = {file for file in texts if file.name.partition(".")[0].lower() in ABOUT and _is_prose(file)}
    rest = [file for file in texts if file not in about]
    by_shard = {file: split_by_shard(file.relative_to(directory)) for file in rest}
    named = by_shard if any(by_shard.values()) else _named_by_words(directory, rest)
    found: dict[str, list[Path]] = {}
    for file in rest:
        if split := named[file]:
            found.setdefault(split, []).append(file)
    unnamed = [file for file in rest if not named[file]]
    if found and "train" not in found and unnamed and named is not by_shard:
        found["train"] = unnamed
    if found:
        files = {split: [corpus_file(file, str(directory)) for file in each] for split, each in found.items()}
        beside = _all_but(inside, (file for each in files.values() for file in each))
        return DataSet(
            directory,
            {split: partial(list, each) for split, each in files.items()},
            beside=tuple(beside),
            source="the names of its files",
        )
    if all(_is_prose(file) for file in rest):  # a page called LICENSE may be as good a text as the others
        rest = list(texts)
    plain = [corpus_file(file, str(directory)) for file in rest]
    if not plain:
        raise UsageError(_no_text(directory, inside))
    return DataSet(directory, {}, tuple(plain), tuple(_all_but(inside, plain)))


def _named_by_words(directory: Path, texts: Sequence[Path]) -> dict[Path, str | None]:
    named = {file: split_by_word(file.relative_to(directory)) for file in texts}
    if all(named.values()):
        return named
    return {file: None if _is_page(file) else split for file, split in named.items()}


def _is_page(file: Path) -> bool:
    return ".md" in [suffix.lower() for suffix in file.suffixes[-2:]]


def _is_prose(file: Path) -> bool:
    known = format_of(file)
    return known is not None and known[0] == "text"


def _no_text(directory: Path, inside: Sequence[Path]) -> str:
    others = ", ".join(sorted({file.suffix or file.name for file in inside})[:5])
    saved = next((file.parent for file in inside if file.name in (STATE, SPLITS)), None)
    return (
        f"{directory}: expected files that end in {EXPECTED}, in this directory or below it, found "
        + (f"only {others}" if others else "no files at all")
        + (f"; {saved} was saved by the library datasets: name it" if saved else "")
    )


def _all_but(inside: Iterable[Path], files: Iterable[CorpusFile]) -> list[Path]:
    read = {file.path for file in files}
    return [file for file in inside if file not in read]


def listed(names: Sequence[str], most: int) -> str:
    """Return names in a row, of many the first and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
