"""The texts that a configuration names: which files each of them is, found before any is opened."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from stackwise_core.config.model import Config, DataConfig
from stackwise_core.config.words import dotted
from stackwise_core.data.corpus import read_files
from stackwise_core.data.corpus.document import TextField
from stackwise_core.data.corpus.files import BUILT_IN, CorpusFile
from stackwise_core.data.corpus.finding import Found, Use, find_corpus, splits_in_glob
from stackwise_core.data.tokenizer_file import check_tokenizer_file
from stackwise_core.errors import StackwiseError, UsageError


@frozen
class NamedText:
    """A text as the configuration names it."""

    key: tuple[str, ...]
    """The key that says where it is."""
    name: str
    """What it is called: a source's name, or where it is."""
    corpus: str
    field: TextField
    weight: float = 1.0
    """How many times an epoch passes over it."""
    is_validation: bool = False
    """Whether it is the validation split, and nothing else is."""


@frozen
class Source:
    """A named text and its files."""

    named: NamedText
    files: tuple[CorpusFile, ...]
    note: str = ""
    """Which split of a data set it is and what of the corpus isn't read, where there is something to say."""


def named_texts(data: DataConfig) -> list[NamedText]:
    """The texts to train on, in order, and then the one to validate on, if there is one."""
    field = TextField(data.text_field)
    texts = []
    for name, source in data.sources.items():
        key = ("data", "sources", name)
        own = field if source.text_field is None else TextField(source.text_field, dotted((*key, "text_field")))
        texts.append(NamedText((*key, "corpus"), name, source.corpus, own, source.weight))
    corpus = BUILT_IN if data.corpus is None else data.corpus
    texts = texts or [NamedText(("data", "corpus"), corpus, corpus, field)]
    if data.validation is not None:
        texts.append(NamedText(("data", "validation"), data.validation, data.validation, field, is_validation=True))
    return texts


def find_sources(data: DataConfig) -> list[Source]:
    """Find the files of all texts: those to train on, and then what is measured on.

    That is ``data.validation``; or a data set's own validation split, unless ``data.validation_fraction`` is set.

    Raises:
        UsageError: there are none, or they are of an unknown kind.
        UnavailableError: a package that reads them isn't there.
    """
    found = [(text, find_corpus(text.corpus, _use(text))) for text in named_texts(data)]
    if misfit := _without_validation(found, data):
        raise misfit[1]
    sources = [Source(text, each.files, _note(text, each, data)) for text, each in found]
    return sources + [Source(_own_validation(*each), each[1].validation) for each in found if _validates(each[1], data)]


def measured(corpus: str, field: TextField) -> Source:
    """Find the files of a text that is measured on, and not trained on.

    Raises:
        UsageError: as ``find_sources``.
        UnavailableError: as ``find_sources``.
    """
    text = NamedText((), corpus, corpus, field, is_validation=True)
    found = find_corpus(corpus, "measuring")
    return Source(text, found.files, _said(text, found, ()))


def share_held_out(sources: Sequence[Source], data: DataConfig) -> float:
    """Return the share of the text that is held out: none where a text is measured on as a whole."""
    return 0.0 if any(source.named.is_validation for source in sources) else data.share_held_out


def text_problems(config: Config) -> Iterator[tuple[tuple[str, ...], StackwiseError]]:
    """The keys that name texts or the tokenizer and what is wrong with them, as far as one document of each tells."""
    data, whole = config.data, []
    for text in named_texts(data):
        try:
            found = find_corpus(text.corpus, _use(text))
            for files in (found.files, found.validation if _validates(found, data) else ()):
                if files and files[0].format != "arrow":  # datasets takes longer to import than all else together
                    next(read_files(files[:1], text.field), None)
            whole.append((text, found))
        except StackwiseError as error:
            yield text.key, error
    if misfit := _without_validation(whole, data):
        yield misfit
    if data.tokenizer != "bytes":
        try:
            check_tokenizer_file(Path(data.tokenizer))
        except StackwiseError as error:
            yield ("data", "tokenizer"), error


def _use(text: NamedText) -> Use:
    return "measuring" if text.is_validation else "training"


def _validates(found: Found, data: DataConfig) -> bool:
    """Whether a data set's own validation split is measured on."""
    return bool(found.validation) and data.validation is None and data.validation_fraction is None


def _own_validation(text: NamedText, found: Found) -> NamedText:
    return evolve(text, name=f"{text.name}#{found.validation_split}", weight=1.0, is_validation=True)


def _without_validation(
    found: Sequence[tuple[NamedText, Found]], data: DataConfig
) -> tuple[tuple[str, ...], UsageError] | None:
    """Return the key of a source that has no validation split though others have, and what to say of it."""
    having = [text.name for text, each in found if _validates(each, data)]
    lacking = [text for text, each in found if not _validates(each, data)]
    if not having or not lacking:
        return None
    return lacking[0].key, UsageError(
        f"{lacking[0].corpus}: expected a validation split of its own, as {', '.join(having)} "
        f"{'has' if len(having) == 1 else 'have'}: name a text to measure on as data.validation, or hold out a share "
        "of all sources with data.validation_fraction"
    )


def _note(text: NamedText, found: Found, data: DataConfig) -> str:
    unused: tuple[str, ...] = ()
    if found.validation and not _validates(found, data):
        key = "data.validation_fraction" if data.validation is None else "data.validation"
        unused = (f"split {found.validation_split} (since {key} is set)",)
    return _said(text, found, unused)


def _said(text: NamedText, found: Found, unused: tuple[str, ...]) -> str:
    """Return the sentence on what of a corpus is read.

    Args:
        unused: what of the validation split there is to say where it isn't measured on.
    """
    left_out, parts = (*unused, *found.left_out), []
    if found.split:
        parts.append(f"split {found.split} is {'measured on' if text.is_validation else 'trained on'}")
    if found.validation and not unused:
        parts.append(f"split {found.validation_split} is measured on")
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    elif len(parts) == 1:
        return ""  # there is one split, and it is read
    if mixed := [] if text.is_validation else splits_in_glob(text.corpus, found.files):
        parts.append(f"its files are named for several splits ({', '.join(mixed)}), and all of them are trained on")
    return f"{text.corpus}: {'; '.join(parts)}." if parts else ""
