"""Records are written as JSON and read again, and what isn't one is refused with its place."""

import json
from pathlib import Path
from typing import Literal

import pytest
from attrs import frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.records import as_json, inline, keyed, omitted, peek_record, read_record

FILE = Path("runs/first/some.json")


@frozen
class Point:
    x: int
    y: float = 0.0


@frozen(kw_only=True)
class Shape:
    base: Point = inline()
    corners: tuple[Point, ...]
    size: tuple[int, str]
    kind: Literal["open", "closed"] | None
    names: dict[str, bool]
    members: frozenset[int]
    the_name: str = keyed("the-name")
    later: tuple[int, ...] = omitted(())


JSON = {
    "x": 1,
    "y": 2.5,
    "corners": [{"x": 3, "y": 0.0}],
    "size": [4, "m"],
    "kind": "open",
    "names": {"a": True},
    "members": [5, 7],
    "the-name": "b",
}
SHAPE = Shape(
    base=Point(1, 2.5),
    corners=(Point(3),),
    size=(4, "m"),
    kind="open",
    names={"a": True},
    members=frozenset({7, 5}),
    the_name="b",
)


def test_a_record_is_written():
    """Inner records stand beside or below, sets are sorted, and what is omitted isn't there."""
    assert as_json(SHAPE) == JSON
    assert list(as_json(SHAPE)) == list(JSON)


def test_a_record_is_read():
    """With what may be missing, and without what a later version wrote."""
    assert read_record(Shape, JSON, FILE) == SHAPE
    assert read_record(Shape, JSON | {"later": [1], "unknown": {}}, FILE).later == (1,)
    assert read_record(Shape, JSON | {"kind": None}, FILE).kind is None


def test_an_integer_does_for_a_number():
    """It becomes one."""
    read = read_record(Shape, JSON | {"y": 2}, FILE)
    assert (read.base.y, type(read.base.y)) == (2.0, float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": "1"}, 'x to be an integer, found the string "1"'),
        ({"x": True}, "x to be an integer, found true"),
        ({"x": 1.0}, "x to be an integer, found 1.0"),
        ({"x": None}, "x to be an integer, found nothing"),
        ({"y": False}, "y to be a number, found false"),
        ({"y": 10**400}, "y to be a number, found 1000"),
        ({"corners": {}}, "corners to be an array of tables, found a table"),
        ({"corners": [{"x": 1}, 2]}, "corners[1] to be a table, found 2"),
        ({"corners": [{"x": 1}, {}]}, "corners[1].x to be an integer, found nothing"),
        ({"size": [4]}, "size to be an array of 2 integers or strings, found 1 of them"),
        ({"size": ["m", 4]}, 'size[0] to be an integer, found the string "m"'),
        ({"kind": "shut"}, 'kind to be "open" or "closed", found the string "shut"'),
        ({"kind": []}, 'kind to be "open" or "closed", found an array'),
        ({"names": []}, "names to be a table of booleans, found an array"),
        ({"names": {"a": True, "b c": 0}}, 'names."b c" to be a boolean, found 0'),
        ({"members": {}}, "members to be an array of integers, found a table"),
        ({"members": [5, 5.0]}, "members[1] to be an integer, found 5.0"),
        ({"the-name": 3}, "the-name to be a string, found 3"),
    ],
)
def test_another_type_is_refused(changes, said):
    """The message names the file, the key, the type of its field, and what stands there."""
    with pytest.raises(StackwiseError) as refused:
        read_record(Shape, JSON | changes, FILE)
    assert str(refused.value).startswith(f"{FILE}: expected {said}")


def test_no_table_at_all():
    """The file itself is what is wrong."""
    with pytest.raises(StackwiseError, match=r"some.json: expected a table, found an array"):
        read_record(Shape, [], FILE)


@pytest.mark.parametrize("content", [None, b"{", b"\xff", b"[" * 100_000, b"[]", b"{}"])
def test_a_look_at_what_is_no_record_finds_nothing(tmp_path, content):
    """Also where there is no such file."""
    file = tmp_path / "some.json"
    if content is not None:
        file.write_bytes(content)
    assert peek_record(Shape, file) is None
    file.write_text(json.dumps(JSON))
    assert peek_record(Shape, file) == SHAPE
