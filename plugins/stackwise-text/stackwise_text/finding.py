"""Choice of a corpus's files: a data set's training split, or its validation split for measuring."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from attrs import frozen

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.corpus import Purpose
from stackwise_core.registry.nearest import nearest
from stackwise_text.data_set import DataSet, listed, read_data_set
from stackwise_text.files import (
    EXPECTED,
    CorpusFile,
    built_in,
    check_packages,
    corpus_file,
    matching,
    nearest_name,
)
from stackwise_text.options import BUILT_IN
from stackwise_text.saved_directories import is_saved, saved_files
from stackwise_text.split_names import like, split_by_word

_LISTED = 4
"""Files that a note names; of more it says how many."""


@frozen
class Found:
    """The files to read of a corpus."""

    files: tuple[CorpusFile, ...]
    split: str = ""
    """The split that they are, with its subset before it where there are several; nothing: it has none."""
    validation: tuple[CorpusFile, ...] = ()
    """The data set's own validation split, if this is for training and there is one beside it."""
    validation_split: str = ""
    left_out: tuple[str, ...] = ()
    """Other contents that aren't read, in words."""


def find_files(corpus: str) -> list[CorpusFile]:
    """Return the files of a corpus to train on, as ``find_corpus``."""
    return list(find_corpus(corpus).files)


def find_corpus(corpus: str, purpose: Purpose = "training") -> Found:
    """Find the files of a corpus, sorted by path.

    Args:
        corpus: ``"python-docs"``; or the path of a file, or of a directory: of one that ``datasets`` saved, of a data
            set with a card or with files named for splits, or any other, which is searched recursively, without hidden
            files and other endings; or a glob, in which ``**`` is any depth, and all matches must have a known ending.
            Of a directory ``"PATH#SPLIT"``, ``"PATH#SUBSET"`` and ``"PATH#SUBSET/SPLIT"`` choose.
        purpose: what for, which decides the split where none is chosen.

    Raises:
        UsageError: nothing is there, or something else, or it isn't clear which split is meant.
        UnavailableError: a package that reads one of the formats isn't there.
    """
    if corpus == BUILT_IN:
        return Found((built_in(),))
    path, part = _path_and_part(corpus)
    if os.path.isdir(path):
        found = _in_directory(Path(path), part, purpose)
    elif os.path.isfile(path):
        found = Found((corpus_file(Path(path), corpus),))
    else:
        found = _in_glob(corpus)
    check_packages(found.files)
    return found


def _path_and_part(corpus: str) -> tuple[str, str]:
    """Return the path, and the subset or split that is chosen of it; a path that exists is taken as one."""
    path, mark, part = corpus.rpartition("#")
    if not mark or glob.has_magic(part) or os.path.exists(corpus) or not os.path.exists(path):
        return corpus, ""
    if not os.path.isdir(path):
        raise UsageError(f"{corpus}: {path} is a file, and has no splits to choose from")
    return path, part


def _in_glob(corpus: str) -> Found:
    matches = matching(corpus) if glob.has_magic(corpus) else []
    if not matches:
        raise UsageError(f"{corpus}: nothing is there{nearest_name(Path(corpus))}")
    return Found(tuple(corpus_file(file, corpus) for file in matches))


def splits_in_glob(corpus: str, files: Sequence[CorpusFile]) -> list[str]:
    """Return the splits that the files of a glob are named for, where these are several: all of them are read."""
    if os.path.exists(corpus) or not glob.has_magic(corpus):
        return []
    fixed = PurePath(*_before_magic(PurePath(corpus).parts))
    named = {split_by_word(file.path.relative_to(fixed)) for file in files}
    return sorted(split for split in named if split) if len(named) > 1 else []


def _before_magic(parts: Sequence[str]) -> list[str]:
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return list(parts[:first])


def _in_directory(directory: Path, part: str, purpose: Purpose) -> Found:
    if is_saved(directory):
        if part:
            raise _no_splits(directory, part)
        return Found(tuple(saved_files(directory)))
    data_set, asked = read_data_set(directory, part)
    if not data_set.splits:
        if asked:
            raise _no_splits(directory, asked)
        return Found(data_set.files, left_out=tuple(_beside(data_set)))
    return _of_data_set(data_set, asked, purpose)


def _of_data_set(data_set: DataSet, asked: str, purpose: Purpose) -> Found:
    split = _split(data_set, asked, purpose)
    files, left_out = data_set.splits[split](), list[str]()
    if not files:
        kinds = sorted({file.suffix or file.name for file in data_set.beside})
        raise UsageError(
            f"{data_set.directory}: expected files of split {split}, as {data_set.source} has it, that end in "
            f"{EXPECTED}, found "
            + (f"none among {listed(kinds, _LISTED)}" if kinds else "none")
            + "; was all of it downloaded?"
        )
    validation, own = None, tuple[CorpusFile, ...]()
    if purpose == "training":
        if data_set.may_overlap:
            files, left_out = _without_held_out(data_set, split, files)
        validation = like("validation", data_set.splits)
    if validation and validation != split and not (own := tuple(data_set.splits[validation]())):
        left_out.append(f"split {validation}, of which no file is here")
    left_out += [f"split {name}" for name in data_set.splits if name not in (split, validation)]
    if data_set.other_subsets:
        left_out.append(f"subsets {listed(data_set.other_subsets, _LISTED)}")
    left_out += _beside(data_set)
    subset = _subset(data_set)
    return Found(tuple(files), subset + split, own, f"{subset}{validation}" if own else "", tuple(left_out))


def _without_held_out(data_set: DataSet, split: str, files: Sequence[CorpusFile]) -> tuple[list[CorpusFile], list[str]]:
    """Leave out files of a split that a card has among those for validation or test as well.

    Returns:
        The others, and what is left out in words.
    """
    others: dict[Path, str] = {}
    for held_out in ("validation", "test"):
        name = like(held_out, data_set.splits)
        if name is not None and name != split:
            others |= {file.path: name for file in data_set.splits[name]()}
    both = [f"{_name(data_set, file.path)} (in split {others[file.path]} too)" for file in files if file.path in others]
    rest = [file for file in files if file.path not in others]
    if not rest:
        raise UsageError(
            f"{data_set.directory}: expected files of split {split} that are for training alone, as {data_set.source} "
            f"has it, found only {listed(both, _LISTED)}"
        )
    return rest, [listed(both, _LISTED)] if both else []


def _split(data_set: DataSet, asked: str, purpose: Purpose) -> str:
    """Return the split that is meant."""
    names = list(data_set.splits)
    if asked in data_set.splits:
        return asked
    subset = _subset(data_set)
    if asked:
        near = nearest(asked, names)
        raise UsageError(
            f'{data_set.directory}: expected one of its splits ({listed(names, 12)}), found "{asked}"'
            + (f'; the nearest is "{data_set.directory}#{subset}{near}"' if near else "")
        )
    wanted = like("train" if purpose == "training" else "validation", names)
    only = names[0] if len(names) == 1 else None
    if only and purpose == "training" and only in (like("test", names), like("validation", names)):
        only = None
    if chosen := wanted or only:
        return chosen
    if purpose == "training":
        wanted, to_do, example = "train", "train on", names[0]
    else:
        wanted, to_do, example = "validation", "measure on", like("test", names) or names[0]
    raise UsageError(
        f"{data_set.directory}: expected a split {wanted}, found {listed(names, 12)}, by {data_set.source}. Name the "
        f'one to {to_do}, such as "{data_set.directory}#{subset}{example}"'
    )


def _no_splits(directory: Path, asked: str) -> UsageError:
    return UsageError(
        f'{directory}: expected a data set with a split "{asked}", found one without splits: name {directory}'
    )


def _subset(data_set: DataSet) -> str:
    """Return the subset's prefix before a split's name, where there are several subsets."""
    return f"{data_set.subset}/" if data_set.other_subsets else ""


def _beside(data_set: DataSet) -> list[str]:
    names = [_name(data_set, file) for file in data_set.beside]
    return [listed(names, _LISTED)] if names else []


def _name(data_set: DataSet, file: Path) -> str:
    return str(file.relative_to(data_set.directory))
