"""Safetensors files, read with ``preadv`` into the process's own memory.

A memory map would add every page that it touches to what the process holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.system.hashed_file import hashed_file

LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses more, too."""

AT_ONCE = 1 << 12
"""Bytes of a file's beginning that are read together; most headers are shorter."""

ALIGNED = 64
"""Alignment in bytes: each tensor begins at a multiple of it, as torch's own do, since the last bit of a product can
depend on it."""

BLOCK = 1 << 20
"""Bytes that are read and hashed at a time, while they are in the processor's cache."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class DamagedTensors(ValueError):
    """Error of a file that isn't a whole safetensors file."""


@frozen
class StoredTensor:
    """Place of a tensor in its file: bytes ``begin`` to ``end``, from the file's first."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO, path: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file, and check that the ranges fill the file without overlap.

    Reads at absolute offsets; where ``file`` stands does not matter.

    Raises:
        DamagedTensors: it isn't a whole safetensors file, or has a number format that torch doesn't.
    """
    size = os.fstat(file.fileno()).st_size
    beginning = os.pread(file.fileno(), AT_ONCE, 0)
    end = _header_end(beginning, size, path)
    while len(beginning) < end:
        more = os.pread(file.fileno(), end - len(beginning), len(beginning))
        if not more:
            raise DamagedTensors(f"{path}: cut short")
        beginning += more
    return _parse(beginning[8:end], size, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a safetensors file, and the SHA-256 of its bytes in hexadecimal.

    The file is read once, into pages that go back to the system with the last tensor; they can be written to.

    Raises:
        DamagedTensors: it isn't a whole safetensors file, or has a number format that torch doesn't.
        OSError: it can't be read.
    """
    digest, tensors = hashlib.sha256(), {}
    with path.open("rb", buffering=0) as file:
        stored = sorted(read_header(file, path).items(), key=lambda each: each[1].begin)
        data = stored[0][1].begin if stored else os.fstat(file.fileno()).st_size
        _read(file, path, 0, np.empty(data, np.uint8), digest)
        places = list(accumulate((-(-(each.end - each.begin) // ALIGNED) * ALIGNED for _, each in stored), initial=0))
        # Pages of its own, not of the heap, where what is freed may be kept.
        pages = mmap.mmap(-1, max(places[-1], 1))
        for (name, each), first in zip(stored, places, strict=False):
            into = np.frombuffer(pages, np.uint8, each.end - each.begin, first)
            _read(file, path, each.begin, into, digest)
            tensors[name] = tensor_in(pages, each, first)
    return tensors, digest.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], into: Path) -> str:
    """Write a safetensors file that others may read, too, and return the SHA-256 of its bytes in hexadecimal.

    The safetensors library's own writer leaves a file of a random name when it is killed, and doesn't say that a disk
    is full. Of tensors on another device, one at a time is held on the CPU.

    Raises:
        OSError: it can't be written.
    """
    header, places = header_of(tensors)
    with hashed_file(into) as written:
        written.write(header)
        for name in places:
            written.write(_bytes_of(tensors[name]))
        return written.sha256


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_of(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """Return the beginning of a safetensors file, and where each tensor's bytes begin after it, in their order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = dict[str, int](), 0
    # The widest numbers first, as the library orders them, so that all are aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": tuple(tensor.shape), "data_offsets": (begin, end)}
        places[name] = begin
    return packed_header(header), places


def stream_tensors(
    into: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterator[tuple[str, Tensor]],
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write tensors that come one after the other into a safetensors file; one at a time is held.

    Args:
        shapes: those of this file, in the order in which they come; more may come after them.
        tensors: each with its name.
        dtype: what they are written as.
        metadata: texts for the file's header.

    Raises:
        OSError: it can't be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
    with into.open("wb") as written:
        written.write(packed_header(header))
        for name, shape in shapes.items():
            came, tensor = next(tensors)
            assert (came, tuple(tensor.shape)) == (name, tuple(shape)), f"{came} {tensor.shape} for {name} {shape}"
            converted = tensor.detach().to(dtype).contiguous()
            written.write(converted.view(-1).view(torch.uint8).numpy().data)
            del tensor, converted  # before the next one is read


def join_tensor_files(parts: Sequence[tuple[str, Path]], into: Path) -> str:
    """Write the tensors of several safetensors files into one, each under its file's prefix; a block at a time.

    Returns the SHA-256 of its bytes in hexadecimal.

    Args:
        parts: files, each after the prefix that its tensors' names get.

    Raises:
        DamagedTensors: one of them isn't a whole safetensors file.
        OSError: one can't be read, or the new one not be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stretches: list[tuple[Path, StoredTensor]] = []
    end = 0
    for prefix, path in parts:
        with path.open("rb", buffering=0) as file:
            stored = read_header(file, path)
        for name, each in sorted(stored.items(), key=lambda item: item[1].begin):
            begin, end = end, end + each.end - each.begin
            header[prefix + name] = {"dtype": NAMES[each.dtype], "shape": each.shape, "data_offsets": (begin, end)}
            stretches.append((path, each))
    with hashed_file(into) as written:
        written.write(packed_header(header))
        for path, each in stretches:
            with path.open("rb", buffering=0) as file:
                for at in range(each.begin, each.end, BLOCK):
                    written.write(os.pread(file.fileno(), min(BLOCK, each.end - at), at))
        return written.sha256


def packed_header(header: Mapping[str, object]) -> bytes:
    """Return the beginning of a safetensors file: header length, and header as JSON, filled up to a multiple of 8."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(file: BinaryIO, path: Path, offset: int, into: np.ndarray, digest: hashlib._Hash) -> None:
    """Fill an array of bytes from an offset on, and hash them."""
    done = 0
    while done < into.size:
        block = into[done : done + BLOCK]
        count = os.preadv(file.fileno(), [block.data], offset + done)
        if not count:
            raise DamagedTensors(f"{path}: cut short while it was read")
        digest.update(block[:count].data)
        done += count


def tensor_in(pages: mmap.mmap | np.ndarray, stored: StoredTensor, first: int) -> Tensor:
    """Return a tensor whose bytes are those of a buffer from a place on."""
    count = math.prod(stored.shape)
    if count == 0:
        return torch.empty(stored.shape, dtype=stored.dtype)
    # Unlike a slice of one tensor, each of these has a version counter of its own for autograd.
    return torch.frombuffer(pages, dtype=stored.dtype, count=count, offset=first).view(stored.shape)


def _header_end(beginning: bytes, size: int, path: Path) -> int:
    """Return where the header ends in the file, from its first 8 bytes."""
    if len(beginning) < 8:
        raise DamagedTensors(f"{path}: {size} bytes are no safetensors file")
    length = int.from_bytes(beginning[:8], "little")
    if length > min(LARGEST_HEADER, size - 8):
        raise DamagedTensors(f"{path}: a header of {length} bytes in a file of {size}")
    return 8 + length


def _parse(header: bytes, size: int, path: Path) -> dict[str, StoredTensor]:
    try:
        described = json.loads(header.decode("utf-8"))
        if not isinstance(described, dict):
            raise DamagedTensors(f"{path}: its header is no JSON object")
        described.pop("__metadata__", None)
        tensors = {name: _stored(name, told, 8 + len(header)) for name, told in described.items()}
    except (KeyError, TypeError, RecursionError, ValueError) as error:
        raise DamagedTensors(
            f"{path}: {str(error) if isinstance(error, DamagedTensors) else f'{error!r:.200}'}"
        ) from error
    last = 8 + len(header)
    for name, stored in sorted(tensors.items(), key=lambda each: (each[1].begin, each[1].end)):
        if stored.begin != last:
            found = f"{name!r:.80} begins at byte {stored.begin}"
            raise DamagedTensors(f"{path}: {found}, the tensor before it ends at {last}")
        last = stored.end
    if last != size:
        raise DamagedTensors(f"{path}: {size} bytes, its header says {last}")
    return tensors


def _stored(name: str, told: dict[str, Any], data: int) -> StoredTensor:
    """Return one entry of the header, checked by itself. ``data`` is where the tensors' bytes begin in the file."""
    dtype, shape, (begin, end) = DTYPES.get(told["dtype"]), told["shape"], told["data_offsets"]
    if dtype is None:
        raise DamagedTensors(f"{name!r:.80} has the number format {told['dtype']!r:.40}, which torch doesn't")
    possible = isinstance(shape, list) and all(type(each) is int and each >= 0 for each in [*shape, begin, end])
    # torch's strides are 64-bit, also where a dimension is zero.
    if possible and math.prod(filter(None, shape)) < 1 << 60 and end - begin == math.prod(shape) * dtype.itemsize:
        return StoredTensor(dtype, tuple(shape), data + begin, data + end)
    raise DamagedTensors(f"{name!r:.80} can't have the shape {shape!r:.80} and the bytes {begin!r:.40} to {end!r:.40}")
