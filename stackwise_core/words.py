"""Words for types, values and keys, in errors and in the configuration reference."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from stackwise_core.options import ByteSize
from stackwise_core.printable import printable

_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("boolean", "booleans"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("string", "strings"),
    Path: ("string", "strings"),
    ByteSize: ("size", "sizes"),
}
_LONGEST_VALUE = 40


def noun(type_: Any, *, plural: bool = False) -> str:
    """Return the name of a type: ``"integer"``, ``"array of strings"``, ``'"auto" or "cpu"'``; None isn't mentioned."""
    origin, arguments = get_origin(type_), get_args(type_)
    if type_ in _NOUNS:
        return _NOUNS[type_][plural]
    if origin is Literal:
        return either([shown(value) for value in arguments])
    if origin in (Union, UnionType):
        return either([noun(part, plural=plural) for part in arguments if part is not NoneType])
    if origin in (tuple, list, frozenset):
        array = "arrays" if plural else "array"
        if origin is tuple and arguments[-1] is not Ellipsis:
            kinds = list(dict.fromkeys(noun(part, plural=len(arguments) > 1) for part in arguments))
            return f"{array} of {len(arguments)} {either(kinds)}"
        return f"{array} of {noun(arguments[0], plural=True)}"
    if origin is dict:
        table = f"{'tables' if plural else 'table'} of {noun(arguments[1], plural=True)}"
        return f"{table} by whole number" if arguments[0] is int else table
    if type_ is list:
        return "arrays" if plural else "array"
    if attrs.has(type_) or type_ is dict:
        return "tables" if plural else "table"
    return "value"


def a(type_: Any) -> str:
    """Return the noun with its article, where it takes one: ``"an integer"``, ``'"auto" or an array of strings'``."""
    if get_origin(type_) in (Union, UnionType):
        return either([a(part) for part in get_args(type_) if part is not NoneType])
    word = noun(type_)
    return word if word.startswith('"') else with_article(word)


def with_article(word: str) -> str:
    """Return ``"a precision"``, ``"an adapter"``."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def either(words: Sequence[str]) -> str:
    """Return ``"a, b or c"``."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def shown(value: Any, longest: int | None = _LONGEST_VALUE) -> str:
    """Return a value as TOML would write it, cut short where it is long."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = json.dumps(printable(value), ensure_ascii=False)
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(shown(part, longest) for part in value)}]"
    elif isinstance(value, Mapping):
        pairs = [f"{dotted([str(key)])} = {shown(part, longest)}" for key, part in value.items()]
        text = f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    else:
        text = str(value)
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def found(value: Any) -> str:
    """Describe a value of the wrong type, with the type that it has where that isn't plain."""
    if isinstance(value, str):
        return f"the string {shown(value)}"
    if isinstance(value, (list, tuple)):
        return "an array"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (datetime, date, time)):
        return f"the date or time {value}"
    if isinstance(value, (int, float)):
        return shown(value)
    return "nothing" if value is None else f"a Python {type(value).__name__}"


def dotted(path: Iterable[str | int]) -> str:
    """Return a key path as TOML writes it, with array places in brackets: ``run.plugins[0]``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if re.fullmatch(r"[A-Za-z0-9_-]+", step) else shown(step)
            text += f".{key}" if text else key
    return text
