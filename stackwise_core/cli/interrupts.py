"""Signals that end a command with a message, as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` for signals that would end the process silently; ignored ones stay ignored."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    heeded = [each for each in SIGNALS if in_main_thread and signal.getsignal(each) is signal.SIG_DFL]
    for each in heeded:
        signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each in heeded:
            signal.signal(each, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
