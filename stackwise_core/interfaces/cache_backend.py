"""The hook ``cache_backend``: where boundaries are kept between the epochs and phases that read them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import define, frozen

from stackwise_core.interfaces.component import Component
from stackwise_core.options import ByteSize, at_least, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Key = bytes
"""16 bytes: a hash of everything that an activation depends on within its namespace."""


@frozen
class CacheOptions:
    """What every backend's options have; subclass it."""

    dtype: Literal["bf16", "fp32"] = option("bf16", "Number format that boundaries are stored in.")
    capacity: ByteSize | None = option(
        None, 'Most bytes to hold, such as "20 GB"; the least recently used entries go first. None: no limit.'
    )
    keep_time_steps: int = option(
        1,
        "Of how many time steps (phases) boundaries are kept: 1 keeps those in use, and none when the run ends; more "
        "are left in the run's cache directory, by a backend that is on disk.",
        check=at_least(1),
    )


@frozen
class Layout:
    """The shape of every activation of one store: [tokens, d_model]."""

    tokens: int
    d_model: int
    dtype: Literal["bf16", "fp32"]

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as torch has it."""
        import torch

        return {"bf16": torch.bfloat16, "fp32": torch.float32}[self.dtype]

    @property
    def bytes_per_entry(self) -> int:
        """Payload of one activation."""
        return self.tokens * self.d_model * {"bf16": 2, "fp32": 4}[self.dtype]


@define
class CacheStats:
    """Counts since the store was opened."""

    entries: int = 0
    bytes: int = 0
    writes: int = 0
    duplicates: int = 0
    reads: int = 0
    evicted: int = 0
    damaged: int = 0


class MissingEntries(KeyError):
    """Some keys have no readable entry; ``keys`` names them."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(f"{len(keys)} activations are not in the store")
        self.keys = list(keys)


class ActivationStore(ABC):
    """Activations of one namespace by key. One writer, many readers."""

    @abstractmethod
    def put(self, keys: Sequence[Key], activations: "Tensor") -> None:
        """Store activations [n, tokens, d_model], cast to the layout's dtype. A key that is there stays as it is."""

    @abstractmethod
    def get(self, keys: Sequence[Key]) -> "Tensor":
        """Read activations [n, tokens, d_model] in the layout's dtype, on the CPU, in the keys' order.

        Raises:
            MissingEntries: an entry was never put, was evicted, or fails its checksum.
        """

    @abstractmethod
    def contains(self, keys: Sequence[Key]) -> list[bool]:
        """Which keys have an entry. Asking counts as use, so an entry just found isn't the next to be evicted."""

    @abstractmethod
    def flush(self) -> None:
        """Make all that was put durable."""

    @abstractmethod
    def drop(self) -> None:
        """Delete every entry and give the room back."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Counts of entries, bytes, reads, writes and damage."""

    def prefetch(self, keys: Sequence[Key]) -> None:  # noqa: B027 - a backend with nothing to fetch ahead needs none
        """Say which keys the next ``get`` asks for, so that their reading can begin."""

    def close(self) -> None:
        """Flush and release; the store isn't used afterwards."""
        self.flush()


class CacheBackend(Component):
    """Opens stores. Its options subclass :class:`CacheOptions`."""

    options: CacheOptions

    durable: bool = False
    """Whether entries outlive the process, on disk, and so count as disk in the plan rather than as memory."""

    @abstractmethod
    def open(self, directory: Path, layout: Layout, capacity: int | None) -> ActivationStore:
        """Open the store of one namespace; a durable one finds what was flushed there before.

        Args:
            directory: named by the namespace; made when something is first written.
            layout: of every entry.
            capacity: most bytes of this one store, beyond which the least recently used entries go; None: no limit.
        """
