"""Training state in files, each written in place, read one entry ahead and written one behind.

The files of the last checkpoint are never written to: the first write after it goes to a new file, and that one is
written in place until the next checkpoint takes it. So there are at most two files an entry, and a process that is
killed at any instant leaves the checkpoint whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from stackwise_core.engine.offload.offload import DURABLE, Offload
from stackwise_core.engine.process.transfer import begin_to_host
from stackwise_core.engine.runs.tensor_file import (
    ALIGNED,
    DamagedTensors,
    header_of,
    read_header,
    tensor_in,
)
from stackwise_core.errors import StackwiseError
from stackwise_core.system.files import name_file

SLOTS = 3
"""Buffers in turn: of an entry, of the next one, and of the one that is read ahead."""
READ_AT_ONCE = 64 << 20
"""Bytes of one system call; Linux reads at most 2 GiB."""


@define
class _Slot:
    """A buffer that entries are read into, as large as the largest so far."""

    pinned: bool = False
    """Whether it is page-locked, so that a device can copy from it at full speed."""
    bytes: np.ndarray = field(factory=lambda: np.empty(0, np.uint8))
    used: torch.cuda.Event | None = None
    """The event on the device after which nothing is copied from it any more."""

    def free(self) -> None:
        """Note that what was given of it is no longer wanted, once the device has done what it was given so far."""
        if self.pinned:
            self.used = torch.cuda.current_stream().record_event()

    def wait(self) -> None:
        """Wait until it may be written over."""
        if self.used is not None:
            self.used.synchronize()

    def room(self, size: int) -> np.ndarray:
        if len(self.bytes) < size + ALIGNED:
            self.bytes = np.empty(0, np.uint8)  # before the next one takes its room
            self.bytes = torch.empty(size + ALIGNED, dtype=torch.uint8, pin_memory=self.pinned).numpy()
        first = -self.bytes.ctypes.data % ALIGNED
        return self.bytes[first : first + size]

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor's numbers lie in it."""
        first = self.bytes.ctypes.data
        return first <= tensor.data_ptr() < first + len(self.bytes)


@frozen
class _Ahead:
    """An entry that is read ahead, and the slot that holds it until somebody asks."""

    entry: str
    slot: _Slot
    tensors: Future[dict[str, Tensor]]


@frozen
class _Writing:
    """An entry that is being written, and the slot that its tensors lie in."""

    entry: str
    slot: _Slot | None
    done: Future[None]


class Disk(Offload):
    """Entries in safetensors files of a directory, which is deleted in the end.

    Args:
        directory: for what changes between checkpoints.
        pinned: whether a CUDA device reads what it gives.
    """

    def __init__(self, directory: Path, *, pinned: bool = False) -> None:
        self._directory, self._pinned = directory, pinned
        shutil.rmtree(directory, ignore_errors=True)  # what a killed process left
        directory.mkdir(parents=True)
        self._saved: dict[str, Path] = {}
        """Files of the last checkpoint, for entries that haven't been written since."""
        self._written: dict[str, Path] = {}
        self._reader = ThreadPoolExecutor(1, "stackwise-read")
        self._writer = ThreadPoolExecutor(1, "stackwise-write")
        self._writing: _Writing | None = None
        self._ahead: _Ahead | None = None
        self._slots = [_Slot(pinned) for _ in range(SLOTS)]
        """Those that no entry is read ahead into, the one that was used last at the end."""
        self._sent: list[tuple[dict[str, Tensor], torch.cuda.Event]] = []
        """Tensors that a device copies, and when it has."""

    def __contains__(self, entry: str) -> bool:
        return entry in self._written or entry in self._saved

    def prefetch(self, entry: str) -> None:
        if entry in self and (self._ahead is None or self._ahead.entry != entry):
            self._cancel()
            slot = self._next_slot()
            self._ahead = _Ahead(entry, slot, self._reader.submit(self._read, entry, slot))

    def read(self, entry: str) -> dict[str, Tensor]:
        ahead = self._ahead
        if ahead is not None and ahead.entry == entry:
            self._ahead = None
            self._slots.append(ahead.slot)
            return ahead.tensors.result()
        if entry.startswith("moments/"):  # larger than all others, and wanted once a step: no buffer for good
            return self._read(entry, _Slot())
        slot = self._next_slot()
        self._slots.append(slot)
        return self._read(entry, slot)

    def read_to(self, entry: str, device: torch.device) -> dict[str, Tensor]:
        there = self.read(entry)
        sent = {name: each.to(device, non_blocking=True) for name, each in there.items()}
        if self._pinned:  # memory that no slot holds must stay until it is copied
            self._sent = [(each, copied) for each, copied in self._sent if not copied.query()]
            self._sent.append((there, torch.cuda.current_stream(device).record_event()))
        return sent

    def _next_slot(self) -> _Slot:
        """Take the slot that was used longest ago, once nothing is written from it any more."""
        slot = self._slots.pop(0)
        slot.free()
        if self._writing is not None and self._writing.slot is slot:
            self._settle()
        return slot

    def _read(self, entry: str, slot: _Slot) -> dict[str, Tensor]:
        writing = self._writing
        if writing is not None and writing.entry == entry:
            writing.done.result()
        slot.wait()
        path = self._written.get(entry) or self._saved[entry]
        try:
            with path.open("rb", buffering=0) as file:
                stored = read_header(file, path)
                begin = min((each.begin for each in stored.values()), default=0)
                end = max((each.end for each in stored.values()), default=0)
                into = slot.room(end - begin)
                _read_at(file.fileno(), into, begin, path)
        except DamagedTensors as error:
            raise StackwiseError(f"not a safetensors file: {error}") from error
        return {name: tensor_in(into, each, each.begin - begin) for name, each in stored.items()}

    def write(self, entry: str, tensors: Mapping[str, Tensor]) -> None:
        held, copied = begin_to_host(tensors)
        self._settle()
        path = self._directory / f"{entry.replace('/', '-')}.safetensors"
        self._written[entry] = path
        if self._ahead is not None and self._ahead.entry == entry:
            self._cancel()
        slots = [*self._slots, *([] if self._ahead is None else [self._ahead.slot])]
        used = [slot for slot in slots if any(slot.holds(tensor) for tensor in held.values())]
        assert len(used) <= 1
        self._writing = _Writing(entry, used[0] if used else None, self._writer.submit(_write, path, held, copied))

    def _settle(self) -> None:
        """Finish what is being written."""
        if self._writing is not None:
            try:
                self._writing.done.result()
            finally:
                self._writing = None

    def _cancel(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if not ahead.tensors.cancel():
                ahead.tensors.exception()
            self._slots.append(ahead.slot)

    def entries(self) -> list[str]:
        every = self._written.keys() | self._saved.keys()
        return sorted(entry for entry in every if entry.partition("/")[0] in DURABLE)

    def save(self, entry: str, path: Path) -> None:
        self._settle()
        self._cancel()
        written = self._written.pop(entry, None)
        if written is not None:
            os.replace(written, path)
        else:  # it hasn't changed since the last checkpoint
            with suppress(FileNotFoundError):
                path.unlink()
            os.link(self._saved[entry], path)

    def saved(self, entries: Mapping[str, Path]) -> None:
        self._saved = dict(entries)

    def restore(self, entries: Mapping[str, Path]) -> None:
        self._settle()
        self._cancel()
        self._written.clear()
        self._saved = dict(entries)

    def close(self) -> None:
        self._cancel()
        with suppress(OSError):  # whoever wrote it was told, or failed for another reason
            self._settle()
        self._reader.shutdown()
        self._writer.shutdown()
        self._saved.clear()
        self._written.clear()
        if self._pinned:
            torch.cuda.synchronize()
        self._sent.clear()
        self._slots = [_Slot(self._pinned) for _ in range(SLOTS)]
        shutil.rmtree(self._directory, ignore_errors=True)


def _write(path: Path, tensors: Mapping[str, Tensor], copied: torch.cuda.Event | None) -> None:
    """Write tensors over a file of the same layout, or into a new one whose room is taken at once.

    Args:
        copied: the event after which they are in host memory.
    """
    if copied is not None:
        copied.synchronize()
    header, places = header_of(tensors)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, size)
        _write_at(descriptor, memoryview(header), 0)
        for name, begin in places.items():
            tensor = tensors[name]
            if tensor.nbytes:
                _write_at(descriptor, tensor.reshape(-1).view(torch.uint8).numpy().data, len(header) + begin)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        os.close(descriptor)


def _read_at(descriptor: int, into: np.ndarray, offset: int, path: Path) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done : done + READ_AT_ONCE].data], offset + done)
        if not count:
            raise DamagedTensors(f"{path}: cut short while it was read")
        done += count


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + READ_AT_ONCE], offset + done)
