"""Work beside the main thread, in order: in one thread, on a stream of its own where the device has streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from attrs import frozen

Result = TypeVar("Result")


@frozen
class Job(Generic[Result]):
    """Work that was submitted."""

    _future: Future[tuple[Result, torch.cuda.Event | None]]

    def result(self) -> Result:
        """Wait for the work, raise what it raised, and return its result.

        What the current stream computes from now on begins after what the work has put on its own.
        """
        found, event = self._future.result()
        if event is not None:
            torch.cuda.current_stream().wait_event(event)
        return found

    @property
    def is_done(self) -> bool:
        """Whether the work is over, or has failed."""
        return self._future.done()


class Background:
    """Place for the calls of stores: they come one at a time, in the order in which the work is submitted.

    Its thread begins with the first work and ends with ``stop``, which nothing outlives.

    Args:
        device: that computes.
        has_thread: whether the work has a thread; if not, it is done when it is submitted.
    """

    def __init__(self, device: torch.device, *, has_thread: bool) -> None:
        self._device, self._has_thread = device, has_thread
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None

    def submit(self, work: Callable[[], Result], *, reads_host: bool = False) -> Job[Result]:
        """Have some work done, after what the current stream has to compute so far.

        Args:
            reads_host: whether it reads host memory that a copy of that stream fills; the thread waits for it then.
        """
        if not self._has_thread:
            return Job(_done(work))
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="stackwise-boundary")
            self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        before = None
        if self._stream is not None:
            before = torch.cuda.Event(blocking=reads_host)
            before.record(torch.cuda.current_stream(self._device))
        return Job(self._thread.submit(self._do, work, before, reads_host))

    @torch.no_grad()
    def _do(
        self, work: Callable[[], Result], before: torch.cuda.Event | None, reads_host: bool
    ) -> tuple[Result, torch.cuda.Event | None]:
        if self._stream is None or before is None:
            return work(), None
        self._stream.wait_event(before)
        if reads_host:
            before.synchronize()
        with torch.cuda.stream(self._stream):
            found = work()
            return found, self._stream.record_event()

    def wait(self) -> None:
        """Wait until all work is done, whatever it raised: the caller may use the stores itself then."""
        if self._thread is not None:
            self.submit(lambda: None).result()

    def stop(self) -> None:
        """Drop the work that hasn't begun, wait for what has, and end the thread."""
        if self._thread is None:
            return
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._thread, self._stream = None, None


@torch.no_grad()
def _done(work: Callable[[], Result]) -> Future[tuple[Result, torch.cuda.Event | None]]:
    """Do some work now, and keep what it raises for whoever asks for its result."""
    future = Future[tuple[Result, torch.cuda.Event | None]]()
    try:
        future.set_result((work(), None))
    except Exception as error:
        future.set_exception(error)
    return future
