"""The texts that a configuration names: which split of each is read, found before any is opened."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from stackwise_core.config.model import TEXT, Choice, Config, DataConfig
from stackwise_core.engine.text.text_source import NamedText, Source
from stackwise_core.engine.tokenizer.tokenizer_file import check_tokenizer_file
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.corpus import Corpus, Found, TextField
from stackwise_core.registry import Registry
from stackwise_core.words import dotted


@frozen
class _Asked:
    """A text that the configuration asks for, of which nothing is made yet."""

    key: tuple[str, ...]
    choice: Choice | None
    field: TextField
    source: str | None = None
    """The name of one of several."""
    weight: float = 1.0
    is_validation: bool = False

    def made(self, registry: Registry) -> NamedText:
        corpus = make_corpus(self.choice, self.field, registry)
        name = corpus.name if self.source is None else self.source
        return NamedText(self.key, name, corpus, self.weight, self.is_validation)


def _asked(data: DataConfig) -> Iterator[_Asked]:
    """Yield the texts to train on, in order, and then the one to validate on, if there is one."""
    field = TextField(data.text_field)
    for name, source in data.sources.items():
        key = ("data", "sources", name)
        own = field if source.text_field is None else TextField(source.text_field, dotted((*key, "text_field")))
        yield _Asked((*key, "corpus"), source.corpus, own, name, source.weight)
    if not data.sources:
        yield _Asked(("data", "corpus"), data.corpus, field)
    if data.validation is not None:
        yield _Asked(("data", "validation"), data.validation, field, is_validation=True)


def make_corpus(choice: Choice | None, field: TextField, registry: Registry) -> Corpus:
    """Make the corpus that gives a text.

    Args:
        choice: None for the built-in text.

    Raises:
        UnavailableError: its plugin isn't there, or fails.
    """
    if choice is None:
        declared = registry.resolve("corpus", TEXT[0])
        choice = Choice(TEXT[0], registry.options_class(declared)())
    else:
        declared = registry.resolve("corpus", choice.use)
    corpus: Corpus = registry.build(declared, choice.options)
    object.__setattr__(corpus, "field", field)  # whatever class it is: an attrs class may be frozen
    return corpus


def named_texts(data: DataConfig, registry: Registry) -> list[NamedText]:
    """Return the texts to train on, in order, and then the one to validate on, if there is one.

    Raises:
        UnavailableError: a plugin isn't there, or fails.
    """
    return [asked.made(registry) for asked in _asked(data)]


def find_sources(data: DataConfig, registry: Registry) -> list[Source]:
    """Find the parts to read of all texts: those to train on, and then the one to validate on.

    That is ``data.validation``; or a data set's own validation split, unless ``data.validation_fraction`` is set.

    Raises:
        UsageError: there is none, or something else.
        UnavailableError: a plugin, or a package that reads them, isn't there.
    """
    found = [(text, text.find()) for text in named_texts(data, registry)]
    if misfit := _without_validation(found, data):
        raise misfit[1]
    sources = [Source(text, each.split, _note(text, each, data)) for text, each in found]
    return sources + [Source(_own_validation(*each), each[1].validation) for each in found if _validates(each[1], data)]


def measured(corpus: Corpus) -> Source:
    """Find what is read of a text that is measured on, and not trained on.

    Raises:
        UsageError: as ``find_sources``.
        UnavailableError: as ``find_sources``.
    """
    text = NamedText((), corpus.name, corpus, is_validation=True)
    found = text.find()
    return Source(text, found.split, _said(text, found, ()))


def share_held_out(sources: Sequence[Source], data: DataConfig) -> float:
    """Return the share of the text that is held out; 0 if a whole text is for validation."""
    return 0.0 if any(source.named.is_validation for source in sources) else data.share_held_out


def text_problems(config: Config, registry: Registry) -> Iterator[tuple[tuple[str, ...], StackwiseError]]:
    """Yield keys of texts or the tokenizer with what is wrong with them. One document of each text is read."""
    data, whole = config.data, []
    for asked in _asked(data):
        try:
            text = asked.made(registry)
            found = text.find()
            for split in (found.split, *([found.validation] if _validates(found, data) else [])):
                text.check(split)
            whole.append((text, found))
        except StackwiseError as error:
            yield asked.key, error
    if misfit := _without_validation(whole, data):
        yield misfit
    if data.tokenizer != "bytes":
        try:
            check_tokenizer_file(Path(data.tokenizer))
        except StackwiseError as error:
            yield ("data", "tokenizer"), error


def _validates(found: Found, data: DataConfig) -> bool:
    """Whether a data set's own validation split is measured on."""
    return bool(found.validation) and data.validation is None and data.validation_fraction is None


def _own_validation(text: NamedText, found: Found) -> NamedText:
    return evolve(text, name=f"{text.name}#{found.validation}", weight=1.0, is_validation=True)


def _without_validation(
    found: Sequence[tuple[NamedText, Found]], data: DataConfig
) -> tuple[tuple[str, ...], UsageError] | None:
    """Return the key of a source that has no validation split though others have, and what to say of it."""
    having = [text.name for text, each in found if _validates(each, data)]
    lacking = [text for text, each in found if not _validates(each, data)]
    if not having or not lacking:
        return None
    return lacking[0].key, UsageError(
        f"{lacking[0].corpus.name}: expected a validation split of its own, as {', '.join(having)} "
        f"{'has' if len(having) == 1 else 'have'}: name a text to measure on as data.validation, or hold out a share "
        "of all sources with data.validation_fraction"
    )


def _note(text: NamedText, found: Found, data: DataConfig) -> str:
    unused: tuple[str, ...] = ()
    if found.validation and not _validates(found, data):
        key = "data.validation_fraction" if data.validation is None else "data.validation"
        unused = (f"split {found.validation} (since {key} is set)",)
    return _said(text, found, unused)


def _said(text: NamedText, found: Found, unused: tuple[str, ...]) -> str:
    """Return the sentence about the parts of a corpus that are read.

    Args:
        unused: what of the validation split there is to say where it isn't measured on.
    """
    left_out, parts = (*unused, *found.left_out), []
    if found.split:
        parts.append(f"split {found.split} is {'measured on' if text.is_validation else 'trained on'}")
    if found.validation and not unused:
        parts.append(f"split {found.validation} is measured on")
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    elif len(parts) == 1:
        return ""  # there is one split, and it is read
    parts += found.remarks
    return f"{text.corpus.name}: {'; '.join(parts)}." if parts else ""
