"""Transfer of host tensors to the device, beside what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from attrs import frozen
from torch import Tensor


def page_locked(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor in page-locked memory, from which a CUDA device reads by itself; others need no copy."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


@frozen
class Sent:
    """Tensors on their way to the device."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event | None

    def arrived(self) -> tuple[Tensor, ...]:
        """Return the tensors; what the device is given to compute from now on waits for them, the host doesn't."""
        if self.copied is not None and self.tensors:
            computing = torch.cuda.current_stream(self.tensors[0].device)
            computing.wait_event(self.copied)
            for each in self.tensors:
                each.record_stream(computing)
        return self.tensors


class Transfer:
    """Copies of host tensors to a device: on a stream of their own where it has streams; the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, tensors: Iterable[Tensor]) -> Sent:
        """Begin to copy tensors, which are page-locked for a CUDA device, after what it was given to do so far."""
        if self._stream is None:
            return Sent(tuple(each.to(self._device, non_blocking=True) for each in tensors), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return self._copied(tensors, self._stream)

    def __call__(self, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Return tensors on the device, copied while it computes what it was given before.

        Args:
            tensors: of the host alone, which nothing on the device writes; page-locked for a CUDA device.
        """
        if self._stream is None:
            return self.begin(tensors).tensors
        return self._copied(tensors, self._stream).arrived()

    def _copied(self, tensors: Iterable[Tensor], stream: torch.cuda.Stream) -> Sent:
        with torch.cuda.stream(stream):
            sent = tuple(each.to(self._device, non_blocking=True) for each in tensors)
            return Sent(sent, stream.record_event())


def begin_to_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Return tensors in host memory, and the event after which they are there; None: they are there already.

    Those of a CUDA device are copied to page-locked memory after what it was given to do so far.
    """
    held = {name: each.detach() for name, each in tensors.items()}
    if not any(each.is_cuda for each in held.values()):
        return {name: each.cpu().contiguous() for name, each in held.items()}, None
    there = {name: torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for name, each in held.items()}
    for name, each in held.items():
        there[name].copy_(each, non_blocking=True)
    return there, torch.cuda.current_stream().record_event()
