"""Lines and columns of keys and values in a TOML text. tomlkit has none, so a sentinel is put in and looked for."""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import tomlkit
from attrs import define, field, frozen
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable, AoT, Array, Table

from stackwise_core.config.errors import Place

Part = Literal["key", "value"]
Body = list[tuple[Any, Any]]
"""Content of a table as tomlkit keeps it: keys and items in the order of the text, comments and blank lines without a
key."""

_SENTINEL = "stackwise-looks-for-this-7f3a"


@frozen
class _Spot:
    body: Body
    index: int
    rest: tuple[str | int, ...]
    """The part of the path that lies within the value: places in an array, or nothing."""


@define
class TomlText:
    """A TOML text that tomli has read without complaint, and its name in messages."""

    name: str
    text: str
    _parsed: Any = field(default=None, init=False)

    def place(self, path: tuple[str | int, ...], part: Part) -> Place:
        """Return where the key at a path stands, or its value; the nearest table where the path isn't in the text."""
        try:
            if self._parsed is None:
                self._parsed = tomlkit.parse(self.text)
            for spot in sorted(_spots(self._parsed.body, path), key=lambda spot: len(spot.rest)):
                return self._place_of(spot, part)
        except TOMLKitError:  # tomli and tomlkit differ on what TOML is: the file's name has to do
            return Place(self.name)
        return Place(self.name)

    def at(self, offset: int, width: int = 1) -> Place:
        """Return the place of a character of the text. A width is cut at the line's end; 0 means the whole line."""
        line, column = self.text.count("\n", 0, offset), offset - (self.text.rfind("\n", 0, offset) + 1)
        source = self.text.split("\n")[line]
        if not width:
            column, width = len(source) - len(source.lstrip()), len(source.strip())
        return Place(self.name, line + 1, column + 1, source, max(1, min(width, len(source) - column)))

    def _place_of(self, spot: _Spot, part: Part) -> Place:
        key, item = spot.body[spot.index]
        if isinstance(item, AoT):
            return self._marked_key(spot.body, spot.index)
        if isinstance(item, Table):
            return self._header(spot.body, spot.index)
        place = self._marked_key(spot.body, spot.index)
        if part == "key" or place.column is None:
            return place
        offset = self._offset(place) + len(key.as_string()) + len(key.sep)
        written = item.as_string()
        if not self.text.startswith(written, offset):
            return self.at(offset, 0)
        if spot.rest and isinstance(item, Array) and isinstance(spot.rest[0], int):
            return self._element(item, spot.rest[0], offset)
        return self.at(offset, len(written))

    def _marked_key(self, body: Body, index: int) -> Place:
        key, item = body[index]
        marked = copy.copy(key)
        marked._original = _SENTINEL
        body[index] = (marked, item)
        try:
            return self._sentinel(key.as_string())
        finally:
            body[index] = (key, item)

    def _header(self, body: Body, index: int) -> Place:
        key, table = body[index]
        if table.display_name is not None and not table.is_super_table():
            name, table.display_name = table.display_name, _SENTINEL
            try:
                return self._sentinel(name)
            finally:
                table.display_name = name
        if not key.is_dotted():  # [a.b] alone: a has no header of its own
            for inner, (inner_key, item) in enumerate(table.value.body):
                if isinstance(item, Table) and inner_key is not None:
                    return self._header(table.value.body, inner)
        return self._marked_key(body, index)

    def _element(self, array: Array, index: int, offset: int) -> Place:
        try:
            element = array[index]
            array[index] = _SENTINEL
        except IndexError:
            return self.at(offset, 1)
        marked = array.as_string()
        array[index] = element
        place = marked.find(f'"{_SENTINEL}"')
        return self.at(offset + max(place, 0), len(getattr(element, "as_string", lambda: "-")()))

    def _sentinel(self, original: str) -> Place:
        """Return the place at which the sentinel that stands for a piece of the text comes out."""
        dumped, width = self._parsed.as_string(), len(original.rstrip())
        offset = dumped.find(_SENTINEL)
        if offset >= 0 and dumped[:offset] == self.text[:offset]:
            return self.at(offset, width)
        # tomlkit puts the pieces of some tables together, so the line is looked for in the text as it was.
        start = dumped.rfind("\n", 0, offset) + 1
        line = dumped[start:].replace(_SENTINEL, original, 1).partition("\n")[0]
        if offset < 0 or f"\n{self.text}\n".count(f"\n{line}\n") != 1:
            return Place(self.name)
        return self.at(f"\n{self.text}\n".index(f"\n{line}\n") + offset - start, width)

    def _offset(self, place: Place) -> int:
        lines = self.text.split("\n")[: (place.line or 1) - 1]
        return sum(len(line) + 1 for line in lines) + (place.column or 1) - 1


def _spots(body: Body, path: tuple[str | int, ...]) -> Iterator[_Spot]:
    """Yield the entries of a path. A table may be written in several pieces; each of them is walked."""
    if not path:
        return
    for index, (key, item) in enumerate(body):
        if key is None or key.key != path[0]:
            continue
        rest, inner = path[1:], item
        if isinstance(item, AoT) and rest and isinstance(rest[0], int) and rest[0] < len(item.body):
            inner, rest = item.body[rest[0]], rest[1:]
        deeper = list(_spots(inner.value.body, rest)) if isinstance(inner, AbstractTable) else []
        yield from deeper or [_Spot(body, index, rest)]
