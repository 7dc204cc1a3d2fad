"""Batches of a boundary read ahead, into a few slots that are used again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from attrs import define
from torch import Tensor

from stackwise_core.engine.boundary.background import Background, Job
from stackwise_core.engine.boundary.codec import decode
from stackwise_core.engine.draws.draws import Draws
from stackwise_core.interfaces.cache_backend import Layout

SLOTS = 3
"""Batches that are there or on their way: the one in use, the next, and one more."""


@define(eq=False)
class _Slot:
    """Memory for the entries [B, T, row] of a batch."""

    entries: Tensor
    """On the device that computes."""
    host: Tensor | None
    """Page-locked host memory of the same size, for a store that doesn't read to the device."""
    sent: torch.cuda.Event | None = None
    """The last copy from ``host``."""
    used: torch.cuda.Event | None = None
    """The last computation that has read ``entries``."""


@define(eq=False)
class _Coming:
    """A batch that was announced."""

    draws: Draws
    slot: _Slot | None = None
    job: Job[bool] | None = None


class ReadAhead:
    """The next batches of a boundary, in the order of their announcement.

    Args:
        fill: fills entries [n, T, row] of some draws, in the background's thread; False where they aren't all there.
        to_device: whether ``fill`` takes entries on the device; else host memory.
        background: that reads.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        fill: Callable[[Draws, Tensor], bool],
        background: Background,
        *,
        to_device: bool,
    ) -> None:
        self._layout, self._device, self._fill, self._background = layout, device, fill, background
        self._to_device = to_device or device.type == "cpu"
        self._coming: list[_Coming] = []
        self._free: list[_Slot] = []
        self._slots = 0

    def announce(self, draws: Draws) -> None:
        """Read a batch, as soon as there is a slot for it."""
        self._coming.append(_Coming(draws))
        self._begin()

    def _begin(self) -> None:
        """Give free slots to the batches that come next."""
        for coming in self._coming:
            if coming.job is None:
                slot = self._slot(len(coming.draws.samples))
                if slot is None:
                    return
                coming.slot = slot
                coming.job = self._background.submit(partial(self._read, coming.draws, slot))

    def _slot(self, sequences: int) -> _Slot | None:
        """Return a slot for so many sequences; None where all are taken."""
        if not self._free and self._slots == SLOTS:
            return None
        slot = self._free.pop() if self._free else None
        if slot is None:
            self._slots += 1
        if slot is None or len(slot.entries) < sequences:
            shape, dtype = (sequences, *self._layout.shape), self._layout.torch_dtype
            host = None if self._to_device else torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")
            slot = _Slot(torch.empty(shape, dtype=dtype, device=self._device), host)
        return slot

    def _read(self, draws: Draws, slot: _Slot) -> bool:
        """Fill a slot, in the background's thread and on its stream; whether all entries are there."""
        entries = slot.entries[: len(draws.samples)]
        if slot.used is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.used)
        if slot.host is None:
            return self._fill(draws, entries)
        if slot.sent is not None:
            slot.sent.synchronize()
        host = slot.host[: len(draws.samples)]
        if not self._fill(draws, host):
            return False
        entries.copy_(host, non_blocking=True)
        if self._device.type == "cuda":
            slot.sent = torch.cuda.Event(blocking=True)
            slot.sent.record()
        return True

    def take(self, draws: Draws) -> Tensor | None:
        """Return hidden states [B, T, D] of a batch, which is read now if it wasn't announced.

        Returns:
            None: its entries aren't all there, or no slot is left for it.
        """
        coming = next((each for each in self._coming if each.draws is draws), None)
        if coming is None:
            coming = _Coming(draws)
            self._coming.insert(0, coming)
            self._begin()
        self._coming.remove(coming)
        if coming.job is None or coming.slot is None:
            return None
        hidden = None
        try:
            if coming.job.result():
                entries = coming.slot.entries[: len(draws.samples)]
                hidden = decode(entries, self._layout)
                if hidden is entries:  # fp32: what the network keeps for its backward pass is no slot
                    hidden = entries.clone()
                if self._device.type == "cuda":
                    coming.slot.used = torch.cuda.current_stream(self._device).record_event()
        finally:
            self._free.append(coming.slot)
        self._begin()
        return hidden

    def forget(self) -> None:
        """Take back what was announced, once nothing of it is under way, and free all slots."""
        self._background.stop()
        self._coming, self._free, self._slots = [], [], 0
