"""Tables on terminals of any width: no number and no name is cut."""

from io import StringIO

import pytest
from rich.console import Console

from stackwise_core.cli.tables import FIRST, LAST, MANY, abridged, print_table

HEADINGS = ("phase", "first loss", "tokens/s", "peak memory")
ROWS = [("stack 0", "4.782", "43.7k", "425 MB"), ("stack 1", "3.221", "30.9k", "450 MB")]


def printed(width: int, left: int = 1, headings=HEADINGS, rows=ROWS) -> list[str]:
    """The lines on a terminal."""
    text = StringIO()
    print_table(Console(file=text, width=width, force_terminal=True, color_system=None), headings, rows, left=left)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_headings_wrap_where_a_terminal_is_narrow():
    """And only there."""
    assert printed(60)[0].split() == " ".join(HEADINGS).split()
    first, second, _, *rows = printed(36)
    assert (first.split(), second.split()) == (["first", "peak"], ["phase", "loss", "tokens/s", "memory"])
    assert [row.split() for row in rows] == [" ".join(row).split() for row in ROWS]
    assert max(map(len, [first, second, *rows])) <= 36


@pytest.mark.parametrize("width", [10, 20, 30])
def test_a_table_that_is_too_wide_is_not_cut(width):
    """The terminal wraps its lines; names and numbers are whole."""
    text = "".join(printed(width))
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in row)


def test_text_wraps_within_its_column():
    """A table with a column of text fits a narrow terminal."""
    rows = [("stack 1", "boundary above stack 0, and whatever else there is", "3.221")]
    lines = printed(40, left=2, headings=("phase", "starts at", "loss"), rows=rows)
    assert max(map(len, lines)) <= 40
    assert "3.221" in "\n".join(lines)


PLAN = ("phase", "starts at", "trains", "params", "frozen", "masked", "masks", "steps", "memory", "disk", "FLOPs")
PHASES = [
    ("stack 0", "tokens", "embedding, stack 0, head", "24.7k", "-", "15-90 %", "2 fixed", "14", "402 MB", "-", "1.98T"),
    (
        "stack 11",
        "boundary above stack 10",
        "stack 11, trunk adapter of 0-10",
        "16.5k",
        "24.7k",
        "52.5-100 %",
        "fresh",
        "123456",
        "406 MB",
        "205 kB",
        "2.35T",
    ),
]


@pytest.mark.parametrize("width", [*range(24, 60, 3), 70, 80, 100, 140])
def test_a_table_of_many_columns_fits_any_terminal(width):
    """In parts, each with the phases' names; every number and every word is whole, and no line is too long."""
    lines = printed(width, left=3, headings=PLAN, rows=PHASES)
    text = " ".join(lines)
    assert "…" not in text
    for row in PHASES:
        assert all(cell in text for cell in (row[0], *row[3:]))
        assert all(word in text.split() for cell in row[1:3] for word in cell.split())
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("stack 11") for line in lines) == sum(line.startswith("phase") for line in lines)
    assert (sum(line.startswith("phase") for line in lines) == 1) == (width >= 100)


def test_what_fits_is_one_table_without_a_wrap():
    """As wide as its cells."""
    lines = printed(140, left=3, headings=PLAN, rows=PHASES)
    assert [line.split() for line in (lines[0], *lines[2:])] == [" ".join(row).split() for row in (PLAN, *PHASES)]


def test_of_many_rows_the_first_and_the_last_are_shown():
    """And how many there are between; a table that is just short enough is whole."""
    rows = [(f"stack {number}", str(number)) for number in range(1000)]
    assert abridged(rows[:MANY]) == rows[:MANY]
    assert abridged([]) == []
    shown = abridged(rows)
    assert [*shown[:FIRST]] == rows[:FIRST]
    assert shown[FIRST] == [f"... {1000 - FIRST - LAST} more", ""]
    assert [*shown[FIRST + 1 :]] == rows[-LAST:]
