"""SIGINT and SIGTERM while a phase trains: the step is finished and a checkpoint written before the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether somebody asked the run to stop.

    Args:
        tell: called once, when the run is asked to stop and finishes its step first.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self._tell = tell
        self._deferring = False
        self.requested = False

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Handle the signals while this lasts, in the main thread; others get none."""
        # One that is ignored stays so, as of a run in the background of a script.
        heeded = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            heeded = []
        before = {each: signal.signal(each, self._handle) for each in heeded}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring and not self.requested:
            self.requested = True
            self._tell()
        else:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first signal is noted, for the code in here to ``stop`` where it can; a second one interrupts it.

        Elsewhere the first one interrupts.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def stop(self) -> None:
        """Stop here if that was asked for.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.requested:
            raise KeyboardInterrupt("what is done is in a checkpoint; the same call goes on from there")
