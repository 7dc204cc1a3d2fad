import pytest

from stackwise_core.config.locate import TomlText

TEXT = """\
# a comment
top = 1
dotted.key.path = 2
dotted.other = "three"

[table]   # with a comment
inline = { a = 1, b = { c = [10, 20], d.e = 5 } }
'quoted key' = 7

[[tables]]
name = "first"

[far.away]
value = 1

[[tables]]
name = "second"
  [tables.inner]
  deep = [
    1,  # one
    { x = 2 },
  ]

[table.child]
value = 2

[far]
near = 3
"""


@pytest.mark.parametrize(
    ("path", "part", "line", "marked"),
    [
        (("top",), "key", 2, "top"),
        (("top",), "value", 2, "1"),
        (("dotted", "key", "path"), "value", 3, "2"),
        (("dotted", "key", "path"), "key", 3, "path"),
        (("dotted", "other"), "value", 4, '"three"'),
        (("dotted",), "key", 3, "dotted"),
        (("table",), "value", 6, "table"),
        (("table", "inline", "a"), "key", 7, "a"),
        (("table", "inline", "b", "c"), "value", 7, "[10, 20]"),
        (("table", "inline", "b", "c", 1), "value", 7, "20"),
        (("table", "inline", "b", "d", "e"), "value", 7, "5"),
        (("table", "quoted key"), "key", 8, "'quoted key'"),
        (("tables", 0, "name"), "value", 11, '"first"'),
        (("tables", 1, "name"), "value", 17, '"second"'),
        (("tables", 1, "inner"), "key", 18, "tables.inner"),
        (("tables", 1, "inner", "deep", 0), "value", 20, "1"),
        (("tables", 1, "inner", "deep", 1), "value", 21, "{ x = 2 }"),
        (("far", "away", "value"), "value", 14, "1"),
        (("far", "away"), "key", 13, "far.away"),
        (("far", "near"), "value", 28, "3"),
        (("table", "child", "value"), "value", 25, "2"),
        (("table", "inline", "nowhere"), "value", 7, "{ a = 1, b = { c = [10, 20], d.e = 5 } }"),
    ],
)
def test_keys_and_values(path, part, line, marked):
    """The carets lie exactly under the key or the value, however the TOML writes its path."""
    place = TomlText("a.toml", TEXT).place(path, part)
    assert place.line == line
    assert place.source[place.column - 1 : place.column - 1 + place.width] == marked


def test_looking_changes_nothing():
    """One text can be asked any number of times, in any order."""
    text = TomlText("a.toml", TEXT)
    paths = [("tables", 1, "inner", "deep", 1), ("table",), ("far", "away"), ("dotted", "key", "path"), ("top",)]
    first = [text.place(path, "value") for path in paths]
    assert [text.place(path, "value") for path in reversed(paths)] == first[::-1]


def test_lines_that_tomlkit_moves():
    """Where tomlkit puts pieces of an array of tables together, a line that is there twice isn't guessed at."""
    text = TomlText("a.toml", "[[a]]\nx = 1\n[b]\nx = 2\n[[a]]\nx = 1\ny = 3\n")
    assert str(text.place(("a", 1, "y"), "value")) == "a.toml:7:5"
    assert str(text.place(("b", "x"), "value")) == "a.toml:4:5"
    assert str(text.place(("a", 1, "x"), "value")) == "a.toml"


def test_what_is_not_there():
    """A path that isn't in the text has the file for its place."""
    place = TomlText("a.toml", TEXT).place(("nothing",), "value")
    assert (str(place), place.excerpt()) == ("a.toml", [])
