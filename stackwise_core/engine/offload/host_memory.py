"""Training state in host memory, pinned where a CUDA device reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.engine.offload.offload import DURABLE, Offload
from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_tensors, write_tensors
from stackwise_core.errors import StackwiseError


class HostMemory(Offload):
    """Entries in buffers of host memory, which are written anew in place.

    Args:
        pinned: whether they are page-locked, so that a device can copy them at full speed.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._held: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, entry: str) -> bool:
        return entry in self._held

    def read(self, entry: str) -> dict[str, Tensor]:
        return self._held[entry]

    def write(self, entry: str, tensors: Mapping[str, Tensor]) -> None:
        held = self._held.setdefault(entry, {})
        for name in set(held) - set(tensors):
            del held[name]
        for name, tensor in tensors.items():
            buffer = held.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            buffer.copy_(tensor.detach())

    def prefetch(self, entry: str) -> None:
        """It is in memory already."""

    def entries(self) -> list[str]:
        return sorted(entry for entry in self._held if entry.partition("/")[0] in DURABLE)

    def save(self, entry: str, path: Path) -> None:
        write_tensors(self._held[entry], path)

    def saved(self, entries: Mapping[str, Path]) -> None:
        """They stay in memory."""

    def restore(self, entries: Mapping[str, Path]) -> None:
        self._held.clear()
        for entry, path in entries.items():
            try:
                self.write(entry, read_tensors(path)[0])
            except DamagedTensors as error:
                raise StackwiseError(f"not a safetensors file: {error}") from error

    def close(self) -> None:
        self._held.clear()
