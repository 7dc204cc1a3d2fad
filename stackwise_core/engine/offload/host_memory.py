"""Training state in host memory, pinned where a CUDA device reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.engine.offload.offload import DURABLE, Offload
from stackwise_core.engine.process.transfer import Sent, Transfer
from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_tensors, write_tensors
from stackwise_core.errors import StackwiseError


class HostMemory(Offload):
    """Entries in buffers of host memory, which are written anew in place.

    Args:
        device: that computes with them; for a CUDA device they are page-locked, and copied while it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned, self._transfer = device, device.type == "cuda", Transfer(device)
        self._held: dict[str, dict[str, Tensor]] = {}
        self._ahead: tuple[str, Sent] | None = None

    def __contains__(self, entry: str) -> bool:
        return entry in self._held

    def read(self, entry: str) -> dict[str, Tensor]:
        if self._pinned:
            torch.cuda.synchronize(self._device)  # what was written is on its way from the device
        return self._held[entry]

    def read_to(self, entry: str, device: torch.device) -> dict[str, Tensor]:
        held, ahead = self._held[entry], self._ahead
        if ahead is not None and ahead[0] == entry:
            self._ahead = None
            return dict(zip(held, ahead[1].arrived(), strict=True))
        return {name: each.to(device, non_blocking=True) for name, each in held.items()}

    def write(self, entry: str, tensors: Mapping[str, Tensor]) -> None:
        if self._ahead is not None and self._ahead[0] == entry:
            self._ahead[1].arrived()  # what is read is written over after that
            self._ahead = None
        held = self._held.setdefault(entry, {})
        for name in set(held) - set(tensors):
            del held[name]
        for name, tensor in tensors.items():
            buffer = held.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            buffer.copy_(tensor.detach(), non_blocking=True)

    def prefetch(self, entry: str) -> None:
        if self._pinned and entry in self._held and (self._ahead is None or self._ahead[0] != entry):
            self._ahead = entry, self._transfer.begin(self._held[entry].values())

    def entries(self) -> list[str]:
        return sorted(entry for entry in self._held if entry.partition("/")[0] in DURABLE)

    def save(self, entry: str, path: Path) -> None:
        write_tensors(self.read(entry), path)

    def saved(self, entries: Mapping[str, Path]) -> None:
        """They stay in memory."""

    def restore(self, entries: Mapping[str, Path]) -> None:
        self._held.clear()
        self._ahead = None
        for entry, path in entries.items():
            try:
                self.write(entry, read_tensors(path)[0])
            except DamagedTensors as error:
                raise StackwiseError(f"not a safetensors file: {error}") from error

    def close(self) -> None:
        self._ahead = None
        self._held.clear()
