"""The texts that a configuration names: which files each of them is, found before any is opened."""

from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from stackwise_core.config.model import Config, DataConfig
from stackwise_core.config.words import dotted
from stackwise_core.data.corpus import read_files
from stackwise_core.data.corpus.document import TextField
from stackwise_core.data.corpus.files import BUILT_IN, CorpusFile, find_files
from stackwise_core.data.tokenizer_file import check_tokenizer_file
from stackwise_core.errors import StackwiseError


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
    """All texts with their files.

    Raises:
        UsageError: there are none, or they are of an unknown kind.
        UnavailableError: a package that reads them isn't there.
    """
    return [Source(text, tuple(find_files(text.corpus))) for text in named_texts(data)]


def text_problems(config: Config) -> Iterator[tuple[tuple[str, ...], StackwiseError]]:
    """The keys that name texts or the tokenizer and what is wrong with them, as far as one document of each tells."""
    for text in named_texts(config.data):
        try:
            files = find_files(text.corpus)
            if files[0].format != "arrow":  # the library datasets takes longer to import than all else together
                next(read_files(files[:1], text.field), None)
        except StackwiseError as error:
            yield text.key, error
    if config.data.tokenizer != "bytes":
        try:
            check_tokenizer_file(Path(config.data.tokenizer))
        except StackwiseError as error:
            yield ("data", "tokenizer"), error
