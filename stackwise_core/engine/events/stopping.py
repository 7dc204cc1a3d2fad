"""Signals to a run: one that stops lets the step finish and a checkpoint be written, SIGUSR1 asks for a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a run."""

CHECKPOINT_SIGNAL = signal.SIGUSR1


class Stopping:
    """Requests to the run to stop, or for a checkpoint.

    Args:
        tell: called once, when the run is asked to stop and finishes its step first.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self._tell = tell
        self._deferring = False
        self.requested = False
        self._checkpoint_requested = False

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Handle the signals while this lasts, in the main thread; others get none."""
        # One that is ignored stays so, as of a run in the background of a script or under nohup.
        handlers = {**dict.fromkeys(SIGNALS, self._handle), CHECKPOINT_SIGNAL: self._note_checkpoint}
        heeded = [each for each in handlers if signal.getsignal(each) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            heeded = []
        before = {each: signal.signal(each, handlers[each]) for each in heeded}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring and not self.requested:
            self.request()
            with suppress(OSError):  # a terminal that hung up can't be told
                self._tell()
        else:
            raise KeyboardInterrupt

    def _note_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self._checkpoint_requested = True

    def request(self) -> None:
        """Ask the run to stop where it can, as a first signal does."""
        self.requested = True

    def takes_checkpoint(self) -> bool:
        """Return whether a checkpoint was asked for since this was last asked."""
        asked, self._checkpoint_requested = self._checkpoint_requested, False
        return asked

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note a first signal, for the code in here to ``stop`` where it can; a second one interrupts it.

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
            raise KeyboardInterrupt("what is done is in a checkpoint; the same call resumes from there")
