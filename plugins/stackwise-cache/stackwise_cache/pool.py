"""Rows of one size in large blocks of memory: a device's as far as its share goes, then the host's."""

from collections.abc import Mapping, Sequence

import torch
from attrs import define
from torch import Tensor

from stackwise_core.interfaces.cache_backend import Layout

SMALLEST_BLOCK, LARGEST_BLOCK = 64 << 20, 1 << 30
"""Bytes. Each block is as large as all before it together, within these: few blocks, and little that isn't used. The
system gives a block's pages when they are first written, but for page-locked memory, which torch rounds up to powers
of two."""

SHIFT = 32
"""A place is ``block number << SHIFT | row``."""

ROW = (1 << SHIFT) - 1
"""The largest row."""


@define
class _Block:
    """Rows of one piece of memory."""

    rows: Tensor
    """Entries [n, tokens, row]."""
    taken: int = 0
    """Rows that were ever taken."""


class Pool:
    """Memory for entries of a layout. It grows by blocks, and takes rows that were given back before it grows.

    Args:
        device: that reads the entries.
        device_bytes: most bytes in that device's memory; all others are in host memory, page-locked for a CUDA device.
    """

    def __init__(self, layout: Layout, device: torch.device, device_bytes: int) -> None:
        self._layout, self._device, self._left_on_device = layout, device, device_bytes
        self._device_bytes = device_bytes
        self._blocks: list[_Block] = []
        self._free: list[int] = []
        self._in_use = 0
        self._copies: torch.cuda.Event | None = None
        """The last copy to a CUDA device that may still read page-locked rows."""

    def resize(self, device_bytes: int) -> None:
        """Change the most bytes in the device's memory; what is there stays there."""
        self._left_on_device += device_bytes - self._device_bytes
        self._device_bytes = device_bytes

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.rows.nbytes for block in self._blocks)

    @property
    def devices(self) -> list[torch.device]:
        """Device of each block."""
        return [block.rows.device for block in self._blocks]

    def take(self, most: int | None = None) -> int:
        """Return the place of a row that nobody has.

        Args:
            most: rows that may be needed in all, so that no block is larger than that; None: any number.
        """
        self._in_use += 1
        if self._free:
            return self._free.pop()
        if not self._blocks or self._blocks[-1].taken == len(self._blocks[-1].rows):
            self._blocks.append(self._grown(most))
        number, block = len(self._blocks) - 1, self._blocks[-1]
        block.taken += 1
        return number << SHIFT | block.taken - 1

    def _grown(self, most: int | None) -> _Block:
        size = min(max(self.bytes, SMALLEST_BLOCK), LARGEST_BLOCK)
        row = self._layout.bytes_per_entry
        count = max(1, size // row if most is None else min(size // row, most))
        on_device = min(count, max(0, self._left_on_device) // row)
        if self._device.type == "cpu" or not on_device:
            pinned = self._device.type == "cuda"
            return _Block(self._empty(count, torch.device("cpu"), pinned=pinned))
        self._left_on_device -= on_device * row
        return _Block(self._empty(on_device, self._device, pinned=False))

    def _empty(self, count: int, device: torch.device, *, pinned: bool) -> Tensor:
        shape = (count, *self._layout.shape)
        return torch.empty(shape, dtype=self._layout.torch_dtype, device=device, pin_memory=pinned)

    def give_back(self, place: int) -> None:
        """Free a row for another entry; with the last one all memory is freed."""
        self._free.append(place)
        self._in_use -= 1
        if not self._in_use:
            self._wait_for_copies()
            self._blocks, self._free, self._left_on_device = [], [], self._device_bytes

    def write(self, place: int, entry: Tensor) -> None:
        """Copy an entry [tokens, row], on any device, into a row; in the order of the current stream."""
        row = self._blocks[place >> SHIFT].rows[place & ROW]
        if row.device.type == "cpu":
            self._wait_for_copies()
        row.copy_(entry)

    def _wait_for_copies(self) -> None:
        if self._copies is not None:
            self._copies.synchronize()
            self._copies = None

    def read(self, places: Sequence[int], into: Tensor) -> None:
        """Copy rows into entries [n, tokens, row]; to a CUDA device in the order of the current stream."""
        blocks = {number: self._blocks[number].rows for number in {place >> SHIFT for place in places}}
        if into.is_contiguous() and all(each.device.type == "cpu" for each in (into, *blocks.values())):
            _gather(blocks, places, into)
            return
        # To a device: a copy a row, each of many kilobytes, and no list of rows that had to be there first.
        to_device = into.device.type == "cuda"
        for place, target in zip(places, into, strict=True):
            target.copy_(blocks[place >> SHIFT][place & ROW], non_blocking=to_device)
        if to_device and any(rows.device.type == "cpu" for rows in blocks.values()):
            self._copies = torch.cuda.Event()
            self._copies.record()


def _gather(blocks: Mapping[int, Tensor], places: Sequence[int], into: Tensor) -> None:
    """Copy rows of blocks in host memory: of one block by a single gather, of several row by row."""
    target, *sources = _words(into, *blocks.values())
    if len(sources) == 1:
        torch.index_select(sources[0], 0, torch.tensor([place & ROW for place in places]), out=target)
        return
    rows = dict(zip(blocks, (each.numpy() for each in sources), strict=True))  # torch would start threads for each row
    for place, row in zip(places, target.numpy(), strict=True):
        row[:] = rows[place >> SHIFT][place & ROW]


def _words(*tensors: Tensor) -> list[Tensor]:
    """View contiguous tensors [n, ...] as [n, words] of the largest integers that all of them consist of.

    torch gathers 8-byte integers several times as fast as bf16 (docs/benchmarks/cache.md).
    """
    flat = [tensor.detach().flatten(1).view(torch.uint8) for tensor in tensors]
    for dtype in (torch.int64, torch.int32, torch.int16):
        if all(each.shape[1] % dtype.itemsize == 0 == each.storage_offset() % dtype.itemsize for each in flat):
            return [each.view(dtype) for each in flat]
    return flat
