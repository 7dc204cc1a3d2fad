"""One shard: a safetensors file of some activations with their keys and checksums.

A shard holds three tensors: ``activations`` [n, tokens, row] in the layout's dtype, ``checksums`` uint8 [n, 16]
(xxh3-128 of the namespace, the key and the entry), and ``keys`` uint8 [n, 16]. It is written beside, synced and
renamed, so it is whole or not there, and it is its own index. Entries are read with ``preadv`` at the offsets that its
header gives: a memory map would add every page it touches to the process's resident memory.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import xxhash
from attrs import define

from stackwise_core.engine.runs.tensor_file import NAMES, DamagedTensors, packed_header, read_header
from stackwise_core.interfaces.cache_backend import Key, Layout
from stackwise_core.system.files import publish


class DamagedShard(ValueError):
    """Error for a file that isn't a shard of this layout."""


def checksum(namespace: bytes, key: Key, activation: memoryview) -> bytes:
    """Compute 16 bytes that tell whether an activation is the one written under this key and in this namespace.

    A key says nothing of the weights below, so that a shard of another store would pass without the namespace.
    """
    digest = xxhash.xxh3_128(namespace + key)
    digest.update(activation)
    return digest.digest()


@define(eq=False)
class Shard:
    """A shard that can be read, and the index of its entries.

    It doesn't open its file: a large store has more shards than a process may open.
    """

    path: Path
    namespace: bytes
    """Name of the shard's directory."""
    size: int
    count: int
    entry_bytes: int
    begin: int
    """Offset of the first activation in the file, in bytes."""
    packed_keys: bytes
    checksums: bytes
    living: int = 0
    """Number of its entries that the store still finds."""

    @classmethod
    def open(cls, path: Path, layout: Layout) -> "Shard":
        """Read the header, the keys and the checksums.

        Raises:
            DamagedShard: the file is cut short, or not a shard of this layout, or the disk can't read it.
            OSError: the file can't be opened.
        """
        try:
            return cls._open(path, layout)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedShard(f"{path}: {error.strerror}") from error

    @classmethod
    def _open(cls, path: Path, layout: Layout) -> "Shard":
        with path.open("rb", buffering=0) as file:
            try:
                header = read_header(file, path)
            except DamagedTensors as error:
                raise DamagedShard(str(error)) from error
            found = {name: (stored.dtype, stored.shape) for name, stored in header.items()}
            count = (*found.get("activations", (None, ()))[1], 0)[0]
            for name, (dtype, shape) in _contents(count, layout).items():
                if found.get(name) != (dtype, shape):
                    raise DamagedShard(f"{path}: {name} isn't {dtype} {shape}")
            keys, checksums = (
                os.pread(file.fileno(), 16 * count, header[name].begin) for name in ("keys", "checksums")
            )
            size = max(stored.end for stored in header.values())
        if len(keys) + len(checksums) != 32 * count:
            raise DamagedShard(f"{path}: cut short")
        begin = header["activations"].begin
        return cls(path, _namespace(path), size, count, layout.bytes_per_entry, begin, keys, checksums)

    @classmethod
    def write(cls, path: Path, keys: list[Key], entries: np.ndarray, layout: Layout) -> "Shard":
        """Write a shard durably: entries uint8 [n, bytes] under n keys.

        The bytes are those of the safetensors library, whose own errors don't say that a disk is full.
        """
        packed_keys, count, namespace = b"".join(keys), len(keys), _namespace(path)
        checksums = b"".join(checksum(namespace, key, row.data) for key, row in zip(keys, entries, strict=True))
        header, end = {}, 0
        for name, (dtype, shape) in _contents(count, layout).items():
            begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
        beginning = packed_header(header)

        def write(beside: Path) -> None:
            with beside.open("wb") as file:
                for part in (beginning, entries.data, checksums, packed_keys):
                    file.write(part)

        publish(path, write)
        begin = len(beginning)
        return cls(path, namespace, begin + end, count, layout.bytes_per_entry, begin, packed_keys, checksums)

    def keys(self) -> list[Key]:
        """List the key of each entry."""
        return np.frombuffer(self.packed_keys, "V16").tolist()

    def read(self, index: int, descriptor: int, into: memoryview) -> bool:
        """Read one activation's bytes; whether they are what was written."""
        try:
            done = os.preadv(descriptor, [into], self.begin + index * self.entry_bytes)
        except OSError as error:
            if error.errno != errno.EIO:  # the disk's own word for damage
                raise
            return False
        here = slice(16 * index, 16 * index + 16)
        return (
            done == self.entry_bytes and checksum(self.namespace, self.packed_keys[here], into) == self.checksums[here]
        )

    def will_read(self, index: int, descriptor: int) -> None:
        """Tell the system that an activation is about to be read."""
        if hasattr(os, "posix_fadvise"):
            begin = self.begin + index * self.entry_bytes
            with suppress(OSError):  # a file system that can't is as right without
                os.posix_fadvise(descriptor, begin, self.entry_bytes, os.POSIX_FADV_WILLNEED)


def _namespace(path: Path) -> bytes:
    return path.parent.name.encode()


def _contents(count: int, layout: Layout) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the tensors of a shard of so many entries, in the file's order: dtype and shape by name."""
    return {
        "activations": (layout.torch_dtype, (count, *layout.shape)),
        "checksums": (torch.uint8, (count, 16)),
        "keys": (torch.uint8, (count, 16)),
    }
