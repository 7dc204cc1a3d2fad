"""Signs of life from work that takes long: a line every few seconds in a pipe or log, a spinner on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console

from stackwise_core.cli.quantities import duration

SECONDS_OF_SILENCE = 5.0
"""Seconds of silence after which a line is due."""


class Pulse:
    """Thread that prints the current activity when nothing was printed for a while.

    Args:
        text: called for the line; what it says may change during the work.
        stderr: whether lines go there.
    """

    def __init__(self, text: Callable[[], str], *, stderr: bool) -> None:
        self._text, self._stderr = text, stderr
        self._spoke = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="stackwise-pulse", daemon=True)
        self._thread.start()

    def postpone(self) -> None:
        """Restart the silence, since something was said, or has happened."""
        self._spoke = time.monotonic()

    def stop(self) -> None:
        """Say nothing more."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(max(0.0, self._spoke + SECONDS_OF_SILENCE - time.monotonic())):
            if time.monotonic() - self._spoke < SECONDS_OF_SILENCE:
                continue
            self.postpone()
            try:
                # Not by rich, which answers a closed pipe by closing stdout for the whole process.
                click.echo(self._text(), err=self._stderr)
            except (OSError, ValueError):
                return  # nobody listens; whoever does the work finds that out for itself


@contextmanager
def working(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Show until the end that work is under way; yield a function for its progress, such as ``"3 of 12 stacks"``.

    Only one of these, or of rich's live displays, may be on a terminal at a time.
    """
    began, far = time.monotonic(), ""

    def text() -> str:
        return f"{what}{f': {far}' if far else ''}, {duration(time.monotonic() - began)} so far"

    if console.is_terminal:
        with console.status(what) as status:
            yield lambda how_far: status.update(f"{what}: {how_far}")
        return

    def tell(how_far: str) -> None:
        nonlocal far
        far = how_far

    pulse = Pulse(text, stderr=console.stderr)
    try:
        yield tell
    finally:
        pulse.stop()
