"""One shard: a safetensors file of some activations with their keys and checksums.

A shard holds three tensors: ``keys`` uint8 [n, 16], ``checksums`` uint8 [n, 16] (xxh3-128 of each key and entry), and
``activations`` [n, tokens, row] in the layout's dtype. It is written beside, synced and renamed, so it is whole or not
there, and it is its own index. The header is read as JSON, and entries with ``pread`` at the offsets that it gives: a
memory map would add every page it touches to the process's resident memory.
"""

import json
import math
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from stackwise_core.files import publish
from stackwise_core.interfaces.cache_backend import Key, Layout

LARGEST_HEADER = 1 << 16
SAFETENSORS_DTYPE = {torch.bfloat16: ("BF16", 2), torch.float32: ("F32", 4), torch.uint8: ("U8", 1)}
"""Its name in a header, and the bytes of a number."""


class DamagedShard(ValueError):
    """The file isn't a shard of this layout."""


def checksum(key: Key, activation: memoryview) -> bytes:
    """16 bytes that tell whether an activation is what was written, and was written under this key."""
    digest = xxhash.xxh3_128(key)
    digest.update(activation)
    return digest.digest()


def as_bytes(activations: Tensor) -> np.ndarray:
    """The bytes of contiguous activations [n, ...] as uint8 [n, bytes], without a copy."""
    return activations.view(torch.uint8).flatten(1).numpy()


def write_shard(path: Path, keys: Sequence[Key], activations: Tensor) -> None:
    """Write a shard durably."""
    checksums = [checksum(key, row.data) for key, row in zip(keys, as_bytes(activations), strict=True)]
    tensors = {
        "keys": torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16).copy()),
        "checksums": torch.from_numpy(np.frombuffer(b"".join(checksums), dtype=np.uint8).reshape(-1, 16).copy()),
        "activations": activations,
    }
    publish(path, lambda beside: save_file(tensors, beside))


class Shard:
    """A shard that is there to be read. No file stays open: a large store has more shards than a process may open."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Read the header, the keys and the checksums.

        Raises:
            DamagedShard: the file is cut short, or not a shard of this layout.
            OSError: the file can't be read.
        """
        self.path, self._entry_bytes = path, layout.bytes_per_entry
        try:
            with path.open("rb") as file:
                self.bytes = os.fstat(file.fileno()).st_size
                header, begin = self._header(file)
                places = self._check(header, begin, layout)
                self._first_activation = places["activations"]
                self.keys = self._sixteens(file, places["keys"], header)
                self._checksums = self._sixteens(file, places["checksums"], header)
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError, struct.error, ValueError) as error:
            raise error if isinstance(error, DamagedShard) else DamagedShard(f"{path}: {error}") from error

    def _header(self, file: BinaryIO) -> tuple[dict, int]:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LARGEST_HEADER:
            raise DamagedShard(f"{self.path}: its header would take {length} bytes")
        return json.loads(file.read(length)), 8 + length

    def _check(self, header: dict, begin: int, layout: Layout) -> dict[str, int]:
        """Where each tensor begins in the file, once the header is found to describe a shard of this layout."""
        count = header["activations"]["shape"][0]
        if type(count) is not int:
            raise DamagedShard(f"{self.path}: it has {count!r} activations")
        expected = {
            "activations": (layout.torch_dtype, [count, *layout.shape]),
            "keys": (torch.uint8, [count, 16]),
            "checksums": (torch.uint8, [count, 16]),
        }
        places = {}
        for name, (torch_dtype, shape) in expected.items():
            dtype, width = SAFETENSORS_DTYPE[torch_dtype]
            size = math.prod(shape) * width
            first, last = header[name]["data_offsets"]
            if (header[name]["dtype"], header[name]["shape"], last - first) != (dtype, shape, size):
                raise DamagedShard(f"{self.path}: {name} isn't {dtype} {shape}")
            if type(first) is not int or not 0 <= first <= last <= self.bytes - begin:
                raise DamagedShard(f"{self.path}: cut short")
            places[name] = begin + first
        return places

    @staticmethod
    def _sixteens(file: BinaryIO, begin: int, header: dict) -> list[bytes]:
        count = header["activations"]["shape"][0]
        file.seek(begin)
        return [file.read(16) for _ in range(count)]

    def read(self, index: int, into: np.ndarray) -> bool:
        """Read one activation's bytes into uint8 [bytes]; whether they are what was written."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            done = os.preadv(descriptor, [into.data], self._offset(index))
        finally:
            os.close(descriptor)
        return done == self._entry_bytes and checksum(self.keys[index], into.data) == self._checksums[index]

    def will_read(self, index: int) -> None:
        """Tell the system that an activation is about to be read."""
        if not hasattr(os, "posix_fadvise"):
            return
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), self._offset(index), self._entry_bytes, os.POSIX_FADV_WILLNEED)

    def _offset(self, index: int) -> int:
        return self._first_activation + index * self._entry_bytes
