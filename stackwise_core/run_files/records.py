"""Records as JSON values, and the strict reader of them: no coercion, and an error names file, key and what was found.

Keys that no record has are passed over: a later version may write more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import attrs

from stackwise_core.errors import StackwiseError
from stackwise_core.words import a, dotted, found

R = TypeVar("R")
KeyPath = tuple[str | int, ...]
_INLINE, _KEY, _OMITTED = "inline", "key", "omitted"


def inline() -> Any:
    """Declare a field that is a record itself, whose keys stand beside those of the other fields."""
    return attrs.field(metadata={_INLINE: True})


def keyed(key: str) -> Any:
    """Declare a field whose key in JSON is no name of Python's."""
    return attrs.field(metadata={_KEY: key})


def omitted(default: Any) -> Any:
    """Declare a field that isn't written where it has its default."""
    return attrs.field(default=default, metadata={_OMITTED: True})


def is_inline(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the keys of a field stand beside those of the other fields."""
    return bool(attribute.metadata.get(_INLINE))


def key_of(attribute: attrs.Attribute[Any]) -> str:
    """Return the key of a field in JSON."""
    key: str = attribute.metadata.get(_KEY, attribute.name)
    return key


def as_json(value: Any) -> Any:
    """Return a record, or what stands in one, as JSON values; sets are sorted."""
    if attrs.has(type(value)):
        table: dict[str, Any] = {}
        for attribute in attrs.fields(type(value)):
            content = getattr(value, attribute.name)
            if is_inline(attribute):
                table |= as_json(content)
            elif not (attribute.metadata.get(_OMITTED) and content == attribute.default):
                table[key_of(attribute)] = as_json(content)
        return table
    if isinstance(value, Mapping):
        return {key: as_json(content) for key, content in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    return [as_json(content) for content in value] if isinstance(value, list | tuple) else value


def read_record(record: type[R], value: object, file: Path) -> R:
    """Read JSON values as a record.

    Args:
        file: where they are from, for messages.

    Raises:
        StackwiseError: a key is missing, or has another type than the record's field.
    """
    read: R = _Reader(file).read(record, value, ())
    return read


def peek_record(record: type[R], file: Path) -> R | None:
    """Read a file without a look at its checksum; None where it isn't a record: who needs more of it says why."""
    try:
        return read_record(record, json.loads(file.read_text(encoding="utf-8")), file)
    except (OSError, ValueError, RecursionError, StackwiseError):
        return None


def refuse(file: Path, where: KeyPath, expected: str, content: str) -> NoReturn:
    """Refuse a file for the value of a key.

    Raises:
        StackwiseError: in any case.
    """
    at = f"{dotted(where)} to be " if where else ""
    raise StackwiseError(f"{file}: expected {at}{expected}, found {content}")


@attrs.frozen
class _Reader:
    """Reader of one file's values, by the types of the records' fields."""

    file: Path

    def read(self, kind: Any, value: Any, where: KeyPath) -> Any:
        """Read a value as a type says it is.

        Raises:
            StackwiseError: it isn't.
        """
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            (kind,) = (each for each in arguments if each is not NoneType)
            return None if value is None else self.read(kind, value, where)
        if origin is Literal:
            return value if isinstance(value, str) and value in arguments else self._refuse(kind, value, where)
        if attrs.has(kind):
            return self._record(kind, value, where)
        if origin in (tuple, frozenset):
            return origin(self._contents(kind, value, where))
        if origin is dict:
            table = value if isinstance(value, dict) else self._refuse(kind, value, where)
            return {key: self.read(arguments[1], content, (*where, key)) for key, content in table.items()}
        if kind is float and type(value) is int:
            with suppress(OverflowError):
                return float(value)
        return value if type(value) is kind else self._refuse(kind, value, where)

    def _record(self, record: Any, value: Any, where: KeyPath) -> Any:
        table = value if isinstance(value, dict) else self._refuse(record, value, where)
        attrs.resolve_types(record)
        contents = {}
        for attribute in attrs.fields(record):
            key = key_of(attribute)
            if is_inline(attribute):
                contents[attribute.name] = self.read(attribute.type, table, where)
            elif key in table or attribute.default is attrs.NOTHING:
                contents[attribute.name] = self.read(attribute.type, table.get(key), (*where, key))
        return record(**contents)

    def _contents(self, kind: Any, value: Any, where: KeyPath) -> list[Any]:
        """Read an array: of any length, or of one for each type of a tuple."""
        kinds = get_args(kind)
        if not isinstance(value, list):
            self._refuse(kind, value, where)
        if get_origin(kind) is frozenset or kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            refuse(self.file, where, a(kind), f"{len(value)} of them")
        return [self.read(each, value[place], (*where, place)) for place, each in enumerate(kinds)]

    def _refuse(self, kind: Any, value: Any, where: KeyPath) -> NoReturn:
        refuse(self.file, where, a(kind), found(value))
