"""Standard output: characters that its encoding lacks are replaced, and with ``--json`` nothing but JSON gets there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO, TextIOWrapper
from typing import TextIO

import click
import rich.console

_WRITE = f"{__name__}.write"
"""The key of click's notes under which a command's own way to standard output is."""
STDOUT, STDERR = 1, 2


def replace_what_cannot_be_encoded() -> None:
    """Show a question mark for a character that the encoding of standard output or standard error lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def discard_output() -> None:
    """Discard what standard output has yet to write, and no longer can: the interpreter would fail over it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Console(rich.console.Console):
    """Console whose output may be closed. That is an ordinary error, not the end of the program."""

    def on_broken_pipe(self) -> None:
        """Raise the error to the caller that prints."""
        raise


def _keep_for_json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and _WRITE not in context.meta:  # a command of a group is asked once more
        context.meta[_WRITE] = context.with_resource(_alone())
    return value


def json_option(help: str = "Print JSON.") -> Callable[..., Callable[..., object]]:
    """Give a command ``--json`` as ``as_json``. All that others print meanwhile, such as plugins, goes to stderr."""
    return click.option("--json", "as_json", is_flag=True, help=help, callback=_keep_for_json)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a command's JSON on standard output; in ASCII, which every encoding has."""
    write: Callable[[str], None] = click.get_current_context().meta[_WRITE]
    write(json.dumps(value, indent=indent) + "\n")


@contextmanager
def _alone() -> Iterator[Callable[[str], None]]:
    """Keep standard output for what is written with the function given; all else that goes there goes to stderr."""
    stdout = sys.stdout
    if not _is_of_the_process(stdout):
        with redirect_stdout(sys.stderr or StringIO()):
            yield lambda text: None if stdout is None else _write_text(stdout, text)
        return
    # By number, so that libraries and processes that write past Python are kept away as well.
    kept, encoding = os.dup(STDOUT), stdout.encoding
    try:
        os.dup2(STDERR, STDOUT)
    except OSError:  # there is no stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    try:
        yield lambda text: _write_all(kept, text.encode(encoding))
    finally:
        with suppress(OSError):
            stdout.flush()
        os.dup2(kept, STDOUT)
        os.close(kept)


def _is_of_the_process(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == STDOUT
    except (OSError, ValueError, AttributeError):
        return False


def _write_text(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
