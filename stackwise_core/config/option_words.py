"""Options of an implementation that is named on the command line, given there as ``--KEY VALUE``."""

from collections.abc import Collection, Mapping

import attrs
from cattrs.errors import BaseValidationError

from stackwise_core.config.convert import convert_options, faults
from stackwise_core.config.errors import Place, Problem, error_for
from stackwise_core.config.sources import toml_value
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.registry import Declared, Registry
from stackwise_core.registry.nearest import nearest
from stackwise_core.words import dotted


def chosen_by_words(
    registry: Registry, hook: str, use: str, words: Mapping[str, str], *, asked_by: str, others: Collection[str]
) -> tuple[Declared, object]:
    """Return the implementation of a name, and its options.

    Args:
        words: texts by option, such as ``{"--max-shard-size": "5 GB"}``.
        asked_by: the option of the command that names the implementation.
        others: options that the command has itself, which may have been meant.

    Raises:
        ConfigError: there is no such implementation or option, or a value is wrong.
        ConfigUnavailable: its plugin isn't there.
    """
    place = Place(f"{asked_by} {use}")
    try:
        declared = registry.resolve(hook, use)
        options = registry.options_class(declared)
    except UsageError as error:
        raise error_for([Problem(str(error), place=place)]) from None
    except UnavailableError as error:
        raise error_for([Problem(str(error), place=place, unavailable=error)]) from error
    keys = {word: word.removeprefix("--").replace("-", "_") for word in words}
    known = {f"--{field.name.replace('_', '-')}": field.name for field in attrs.fields(options) if field.init}
    problems = []
    for word in words.keys() - known.keys():
        near = nearest(word, [*known, *others])
        help = f"did you mean {near}?" if near else f"known here: {', '.join([*sorted(others), *known])}"
        problems.append(Problem(f'no option of the command, nor of {hook} "{use}"', place=Place(word), help=help))
    given = {known[word]: toml_value(text) for word, text in words.items() if word in known}
    try:
        converted = convert_options(given, options, registry)
    except BaseValidationError as error:
        texts = {key: f"{word} {words[word]}" for word, key in keys.items()}
        for path, fault in faults(error):
            where = Place(texts.get(str(path[0]) if path else "", str(place)))
            problems.append(Problem(fault.message, dotted(path[1:]), where, fault.help))
    if problems:
        raise error_for(problems)
    return declared, converted
