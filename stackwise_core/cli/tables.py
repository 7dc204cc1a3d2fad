"""A table: ruled and coloured on a terminal, aligned plain text in a pipe."""

from collections.abc import Sequence
from textwrap import wrap

import click
from rich import box
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from stackwise_core.config.errors import printable


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows of text; all columns but the first ``left`` hold numbers and align right."""
    rows = [[printable(cell) for cell in row] for row in rows]  # some come from files
    if not console.is_terminal:
        print_aligned([headings, *rows], left=left, stderr=console.stderr)
        return
    cells = [max(map(len, column), default=0) for column in zip(*rows, strict=True)] or [0] * len(headings)
    has_text = left > 1
    if _width(headings, cells) > console.width:
        headings = [
            "\n".join(wrap(each, max(width, *map(len, each.split()))))
            for each, width in zip(headings, cells, strict=True)
        ]
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="dim"
    )
    for place, heading in enumerate(headings):
        # Text may wrap where a terminal is narrow; a number or a name that is cut is of no use.
        is_text = 0 < place < left
        table.add_column(
            Text(heading), justify="left" if place < left else "right", no_wrap=not is_text, vertical="bottom"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    least = _width(headings, cells)
    if has_text or least <= console.width:
        console.print(table)
    else:  # the terminal wraps its lines
        whole = Segments(console.render(table, console.options.update(width=least)))
        console.print(whole, soft_wrap=True, end="")


def _width(headings: Sequence[str], cells: Sequence[int]) -> int:
    """Columns of a terminal that a table takes, whose cells are at most so wide."""
    widths = [max(width, *map(len, heading.split("\n"))) for heading, width in zip(headings, cells, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


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
