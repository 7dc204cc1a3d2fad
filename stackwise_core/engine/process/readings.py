"""Numbers on their way from the device to the host, which never waits for them unless it is asked to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

About = TypeVar("About")


class Readings(Generic[About]):
    """Numbers of steps in order, each with what they are about."""

    def __init__(self) -> None:
        self._coming: deque[tuple[Tensor, torch.cuda.Event | None, About]] = deque()

    def add(self, numbers: Tensor, about: About) -> None:
        """Begin to copy numbers [n], float64, to the host."""
        if numbers.device.type != "cuda":
            self._coming.append((numbers, None, about))
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._coming.append((host, copied, about))

    def arrived(self) -> Iterator[tuple[list[float], About]]:
        """Yield the numbers that are there, in order, without waiting for others."""
        while self._coming and (self._coming[0][1] is None or self._coming[0][1].query()):
            yield self._next()

    def all(self) -> Iterator[tuple[list[float], About]]:
        """Yield all that were added, and wait for those that aren't there yet."""
        while self._coming:
            if (copied := self._coming[0][1]) is not None:
                copied.synchronize()
            yield self._next()

    def _next(self) -> tuple[list[float], About]:
        host, _, about = self._coming.popleft()
        return host.numpy().tolist(), about
