"""A table: ruled and coloured on a terminal, aligned plain text in a pipe."""

from collections.abc import Sequence
from textwrap import wrap

import click
from attrs import frozen
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from stackwise_core.printable import printable

GAP = 2
"""Columns of a terminal between two of a table."""
MANY, FIRST, LAST = 30, 8, 4
"""Rows that are all shown, and of more the first and the last ones that are."""


def abridged(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """Return the rows; of many, the first and the last with a count of those between."""
    if len(rows) <= MANY:
        return rows
    between = f"... {len(rows) - FIRST - LAST} more"
    return [*rows[:FIRST], [between, *[""] * (len(rows[0]) - 1)], *rows[-LAST:]]


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows of text; all columns but the first ``left`` hold numbers and align right.

    Where a terminal is narrow headings wrap, and so does text, at its spaces. A table that is still too wide is printed
    in parts, each with the first column: a number or a name that is cut is of no use.
    """
    rows = [[printable(cell) for cell in row] for row in rows]  # some come from files
    if not console.is_terminal:
        print_aligned([headings, *rows], left=left, stderr=console.stderr)
        return
    columns = [_Column.of(place, left, heading, [row[place] for row in rows]) for place, heading in enumerate(headings)]
    for number, part in enumerate(_parts(columns, console.width)):
        if number:
            console.print()
        _print_ruled(console, part)


@frozen
class _Column:
    """A column of a table for a terminal."""

    heading: str
    cells: list[str]
    is_text: bool
    """Whether its cells may wrap."""
    is_left: bool

    @classmethod
    def of(cls, place: int, left: int, heading: str, cells: list[str]) -> "_Column":
        """Make a column of a table. The first ``left`` columns hold text, the others numbers."""
        return cls(heading, cells, 0 < place < left, place < left)

    @property
    def wide(self) -> int:
        """Columns of a terminal that it takes where nothing wraps."""
        return max(map(cell_len, [self.heading, *self.cells]))

    @property
    def narrow(self) -> int:
        """Columns that it takes at least, where its heading wraps, and its text if it is one."""
        cells = [word for cell in self.cells for word in cell.split()] if self.is_text else self.cells
        return max(map(cell_len, [*self.heading.split(), *cells]), default=0)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _parts(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Divide a table into parts that fit, each with its first column; one of two columns is divided no further."""
    first, *others = columns
    parts: list[list[_Column]] = [[first]]
    for column in others:
        if len(parts[-1]) > 1 and _width([each.narrow for each in [*parts[-1], column]]) > width:
            parts.append([first])
        parts[-1].append(column)
    return parts


def _print_ruled(console: Console, columns: Sequence[_Column]) -> None:
    fits = _width([column.wide for column in columns]) <= console.width
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="dim"
    )
    for column, width in zip(columns, _text_widths(columns, console.width), strict=True):
        heading = column.heading
        if not fits and not column.is_text:
            heading = "\n".join(wrap(heading, column.narrow, break_long_words=False))
        table.add_column(
            Text(heading),
            justify="left" if column.is_left else "right",
            no_wrap=not column.is_text,
            width=width,
            vertical="bottom",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    # Every width is settled: rich is given room, lest it take some away, and a terminal wraps what is wider than it.
    most = _width([column.wide for column in columns]) + len(columns)
    console.print(Segments(console.render(table, console.options.update(width=most))), soft_wrap=True, end="")


def _text_widths(columns: Sequence[_Column], width: int) -> list[int | None]:
    """Share the room that numbers leave of a terminal among the columns of text.

    None for numbers, which take what they need.
    """
    widths = [column.narrow if column.is_text else None for column in columns]
    left = width - _width([column.narrow for column in columns])
    while left > 0:
        missing = [0 if given is None else column.wide - given for column, given in zip(columns, widths, strict=True)]
        if not any(missing):
            break
        most = missing.index(max(missing))
        widths[most] = (widths[most] or 0) + 1
        left -= 1
    return widths


def print_aligned(
    lines: Sequence[Sequence[str]], *, indent: str = "", left: int | None = None, stderr: bool = False
) -> None:
    """Print rows of text with two spaces between columns; columns from ``left`` on align right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if left is None or place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo(indent + "  ".join(cells).rstrip(), err=stderr)
