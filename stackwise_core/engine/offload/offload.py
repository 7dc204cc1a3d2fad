"""Interface of the place where the training state of stacks waits: host memory, or a disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DURABLE = ("weights", "moments")
"""Kinds of entries that a checkpoint holds; gradients and boundaries last for a step."""


def weights_entry(stack: int) -> str:
    """Return the entry of what trains of a stack."""
    return f"weights/{stack:03d}"


class Offload(ABC):
    """Keeper of tensors by entry: ``weights/003``, ``moments/003``, ``gradients/003``, ``boundary/003/0``.

    What was read belongs to the caller, who may change it, until the entry after the next is read; of ``moments`` for
    good. What was written mustn't be changed until the next one is written.
    """

    @abstractmethod
    def __contains__(self, entry: str) -> bool:
        """Return whether an entry was written."""

    @abstractmethod
    def read(self, entry: str) -> dict[str, Tensor]:
        """Return the tensors of an entry by name, in host memory.

        Raises:
            OSError: it can't be read, or an earlier entry couldn't be written.
            StackwiseError: it is damaged.
        """

    def read_to(self, entry: str, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of an entry by name on a device; the host doesn't wait for the copies.

        Raises:
            OSError, StackwiseError: as ``read``.
        """
        return {name: each.to(device, non_blocking=True) for name, each in self.read(entry).items()}

    @abstractmethod
    def write(self, entry: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors in place of those that the entry had.

        Raises:
            OSError: it can't be written, or an earlier entry couldn't.
        """

    @abstractmethod
    def prefetch(self, entry: str) -> None:
        """Begin to read an entry that is wanted next, if there is one."""

    @abstractmethod
    def entries(self) -> list[str]:
        """List the entries of durable kinds."""

    @abstractmethod
    def save(self, entry: str, path: Path) -> None:
        """Write an entry into a safetensors file for a checkpoint; it may be the entry's own file that is moved there.

        Raises:
            OSError: it can't be written.
        """

    @abstractmethod
    def saved(self, entries: Mapping[str, Path]) -> None:
        """Take note that entries are in a checkpoint as they are now.

        Args:
            entries: their files, which stay as they are.
        """

    @abstractmethod
    def restore(self, entries: Mapping[str, Path]) -> None:
        """Go back to a checkpoint, and forget everything else.

        Args:
            entries: the files of durable entries; they stay as they are.

        Raises:
            StackwiseError: a file is damaged.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what it holds; what a checkpoint has stays."""
