"""Transfer of host tensors to the device, beside what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def page_locked(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor in page-locked memory, from which a CUDA device reads by itself; others need no copy."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


class Transfer:
    """Copies of host tensors to a device: on a stream of their own where it has streams; the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors on the device.

        Args:
            tensors: page-locked ones, for a CUDA device; what computes with them waits for the copies there.
        """
        if self._stream is None:
            return [each.to(self._device, non_blocking=True) for each in tensors]
        with torch.cuda.stream(self._stream):
            sent = [each.to(self._device, non_blocking=True) for each in tensors]
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for each in sent:
            each.record_stream(computing)
        return sent
