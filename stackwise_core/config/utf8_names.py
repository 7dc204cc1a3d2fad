"""Check of names and paths: file systems allow any bytes, but a run records them in UTF-8."""

from collections.abc import Iterator, Mapping
from typing import Any

from stackwise_core.config.layers import KeyPath
from stackwise_core.errors import UsageError
from stackwise_core.words import dotted

ADVICE = "rename it: a run writes its names and paths down as UTF-8"


def names_beyond_utf8(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every text of plain tables and lists that isn't UTF-8, with its key."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from names_beyond_utf8(key, (*path, key))
            yield from names_beyond_utf8(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from names_beyond_utf8(each, (*path, index))
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            yield path, value


def refuse_names_beyond_utf8(value: Any) -> None:
    """Refuse plain tables and lists that can't be written down.

    Raises:
        UsageError: a text in them isn't UTF-8.
    """
    for path, text in names_beyond_utf8(value):
        raise UsageError(f"{dotted(path)}: expected UTF-8, found {text!r:.200}; {ADVICE}")
