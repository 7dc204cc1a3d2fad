"""The hook ``cache_backend``: stores that keep boundaries between the epochs and phases that read them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, frozen

from stackwise_core.interfaces.component import Component
from stackwise_core.options import ByteSize, at_least, option, path_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Key = bytes
"""Hash of 16 bytes, of everything that an activation depends on within its namespace."""

Format = Literal["bf16", "fp32", "int8", "fp8", "int4"]
LARGEST_BUFFER = 64 << 20
"""Most bytes of entries that wait in memory to be written together. A single larger entry is allowed."""
INT4_GROUP = 32
"""Number of features of a token that share a scale in int4."""


def _only_where_more_are_kept(instance: "CacheOptions", attribute: Any, value: int | None) -> None:
    at_least(1)(instance, attribute, value)
    if value is not None and value > 1 and instance.keep == "stack":
        raise ValueError('keep = "stack" has only the boundary in use: set keep = "rack", or leave it out')


@frozen
class CacheOptions:
    """Options that every backend has; subclass it."""

    dtype: Format = option(
        "bf16",
        "Number format that boundaries are stored in. int8 and fp8 have a scale a token, int4 one every 32 features.",
    )
    capacity: ByteSize | None = option(
        None,
        'Most bytes to keep, such as "20 GB". Beyond it the oldest phase\'s boundaries are evicted first, and of these '
        "the least recently used. None: no limit.",
    )
    keep: Literal["stack", "rack"] = option(
        "stack",
        "Boundaries that are kept. stack: only the one in use, and none after the run. rack: those of all stacks, for "
        '"stackwise cache" to list and measure; the backend must be on disk.',
    )
    keep_time_steps: int | None = option(
        None,
        'Number of the last time steps (phases) whose boundaries are kept, with keep = "rack". None: all.',
        check=_only_where_more_are_kept,
    )
    directory: str | None = option(
        None,
        "Directory for boundaries alone, relative to the TOML. Runs that use the same one share equal boundaries. "
        "None: the run's own directory.",
        check=path_text,
        path=(),
    )

    @property
    def phases_kept(self) -> float:
        """Number of phases of which boundaries are kept; infinity for all."""
        if self.keep == "stack":
            return 1
        return math.inf if self.keep_time_steps is None else self.keep_time_steps


@frozen
class Layout:
    """The shape of a store's entries: activations [tokens, d_model], in a number format."""

    tokens: int
    """Tokens of a sequence."""
    d_model: int
    """Width of the residual stream."""
    dtype: Format
    """Number format: floats, or codes with scales."""

    @property
    def row(self) -> int:
        """Numbers of an entry for each token, or its bytes of codes and scales."""
        if self.dtype == "int4":
            return self.d_model // 2 + 2 * (self.d_model // INT4_GROUP)
        return self.d_model + (4 if self.dtype in ("int8", "fp8") else 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an entry: [tokens, row]."""
        return (self.tokens, self.row)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Dtype of an entry: floats, or uint8 for codes with their scales."""
        import torch

        return {"bf16": torch.bfloat16, "fp32": torch.float32}.get(self.dtype, torch.uint8)

    def written_together(self, most: int) -> int:
        """Return the number of entries, ``most`` or fewer, that may wait in memory to be written together."""
        return max(1, min(most, LARGEST_BUFFER // self.bytes_per_entry))

    @property
    def bytes_per_entry(self) -> int:
        """Bytes of one entry's payload."""
        return self.tokens * self.row * {"bf16": 2, "fp32": 4}.get(self.dtype, 1)


@define
class CacheStats:
    """The content of a store, and counts of entries since it was opened."""

    entries: int = 0
    """Entries that ``contains`` finds now."""
    bytes: int = 0
    """Bytes that count against the capacity: the entries' payloads, and the data kept with them."""
    writes: int = 0
    """Entries put under new keys."""
    duplicates: int = 0
    """Entries put under keys that already had one."""
    reads: int = 0
    """Entries read."""
    evicted: int = 0
    """Entries deleted for lack of space; discarded ones don't count."""
    damaged: int = 0
    """Damaged entries, or damaged files of entries."""


class MissingEntries(KeyError):
    """Error of keys that have no readable entry; ``keys`` names them."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(f"{len(keys)} activations are not in the store")
        self.keys = list(keys)


class ActivationStore(ABC):
    """Activations of one namespace by key. One writer, many readers.

    Within a process its methods are called one at a time, and not always by the same thread: the engine reads a batch
    ahead, and writes behind, in a thread of its own. So a store needs no lock, and must not be bound to the thread that
    opened it.
    """

    reads_to_device: bool = False
    """Whether ``read_into`` had better be given entries on the device that computes. If not, the engine gives it host
    memory, page-locked where the device is a CUDA device, and copies from there."""

    @abstractmethod
    def put(self, keys: Sequence[Key], entries: "Tensor") -> None:
        """Store entries [n, tokens, row] of the layout's dtype. The first entry of a key stays; later ones are ignored.

        Entries that don't fit into the capacity or the disk are evicted at once, without an error.
        """

    @abstractmethod
    def get(self, keys: Sequence[Key]) -> "Tensor":
        """Read entries [n, tokens, row], on the CPU, in the keys' order, bit for bit as they were put.

        Raises:
            MissingEntries: an entry was never put, was evicted, or fails its checksum.
        """

    def read_into(self, keys: Sequence[Key], entries: "Tensor") -> None:
        """Fill entries [n, tokens, row] of the layout's dtype, on any device, with what ``get`` gives for these keys.

        A store that overrides it saves a copy. Where the entries are on a CUDA device the copy may still be under way,
        in the order of the current stream.

        Raises:
            MissingEntries: as ``get``. The entries may be filled in part then.
        """
        entries.copy_(self.get(keys))

    @abstractmethod
    def contains(self, keys: Sequence[Key]) -> list[bool]:
        """Return which keys have an entry.

        Asking counts as use: an entry just found isn't the next to be evicted.
        """

    @abstractmethod
    def keys(self) -> Iterator[Key]:
        """Iterate over every entry's key, in no particular order."""

    @abstractmethod
    def shrink(self, most: int) -> None:
        """Evict the least recently used entries until at most ``most`` bytes are held."""

    @abstractmethod
    def flush(self) -> None:
        """Make all entries put so far durable.

        Called when a phase ends. Buffers and open files may be released then.
        """

    @abstractmethod
    def drop(self) -> None:
        """Delete every entry and free its space."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Return counts of entries, bytes, reads, writes and damage."""

    def prefetch(self, keys: Sequence[Key]) -> None:  # noqa: B027 - a backend with nothing to fetch ahead needs none
        """Begin to read ahead for the next ``get``, which asks for these keys."""

    def discard(self, keys: Iterable[Key]) -> None:  # noqa: B027 - room that comes back with ``drop`` is no fault
        """Release entries that nobody will ask for again, so that their space can be freed. Nothing is evicted."""

    def close(self) -> None:
        """Flush and release everything. The store isn't used afterwards."""
        self.flush()


class CacheBackend(Component):
    """Backend that opens stores. Its options subclass :class:`CacheOptions`."""

    options: CacheOptions

    durable: bool = False
    """Whether entries stay on disk after the process ends. The plan then counts them as disk, not as memory."""
    shrinks: bool = True
    """Whether discarding entries frees their space. If not, the plan counts them until the store is deleted."""

    device: "torch.device | None" = None
    """Device that computes with the entries; the engine sets it when the backend is made."""
    device_room: int = 0
    """Bytes of that device's memory that the plan leaves for entries; the engine sets it before ``open``."""

    def bytes_on_device(self, size: int) -> int:
        """Return how many of so many bytes of entries its stores keep in the device's memory, for the plan."""
        return 0

    def buffer_bytes(self, layout: Layout) -> int:
        """Return the bytes of entries that a store holds in memory until they are written, for the plan."""
        return 0

    @abstractmethod
    def open(self, directory: Path, layout: Layout, capacity: int | None) -> ActivationStore:
        """Open the store of one namespace. A durable one finds the entries flushed there before.

        Args:
            directory: named after the namespace, and created at the first write. Entries written under another name
                count as damaged here, because keys don't include the weights below.
            layout: the layout of every entry.
            capacity: most bytes of this store; beyond it the least recently used entries are evicted. None: no limit.
        """
