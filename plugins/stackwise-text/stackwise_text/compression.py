"""The bytes of a file as a stream, decompressed where it is compressed, and counted as they are read."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

from stackwise_core.interfaces.corpus import Consumed
from stackwise_text.files import CorpusFile

BLOCK = 1 << 20
ZSTD_WINDOW = 31
"""The largest window, log2 of its bytes, as ``zstd --long=31`` has it; a file says how much of it is to be kept."""
ZSTD_BLOCK = 1 << 12
"""Compressed bytes handed over at once: zstandard returns all that they stand for, up to 32,000 times as much."""


class DamagedError(Exception):
    """A compressed file is cut short or isn't what its name says; the text is the reason."""


@contextmanager
def opened(file: CorpusFile, consumed: Consumed | None = None) -> Iterator[BinaryIO]:
    """Open a file for reading its text's bytes; reading raises ``DamagedError`` where they can't be had.

    Raises:
        OSError: the system won't open it.
    """
    with io.BufferedReader(_Counted(file.path, consumed), BLOCK) as raw:
        if not file.compression:
            yield raw
            return
        kind, inner = ("gzip", gzip.GzipFile(fileobj=raw)) if file.compression == ".gz" else ("zstd", _zstd(raw))
        with io.BufferedReader(_Decompressed(inner, kind, raw), BLOCK) as stream:
            yield stream


class _Counted(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Any, consumed: Consumed | None) -> None:
        super().__init__(path)
        self._consumed = consumed

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer)
        if self._consumed and size:
            self._consumed(size)
        return size or 0


class _Source(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Decompressed(io.RawIOBase):
    """Stream of decompressed bytes that raises the decompressor's errors as ``DamagedError``."""

    def __init__(self, source: _Source, kind: str, raw: BinaryIO) -> None:
        self._source, self._kind, self._raw = source, kind, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._source.read1(len(buffer))  # as much as is ready: what precedes a fault is had
            if not block and not self._raw.tell():
                raise EOFError  # no bytes at all; a compressed text without a character has some
        except EOFError:
            raise DamagedError(f"expected a whole {self._kind} file, found one that is cut short") from None
        except (OSError, zlib.error, _ZstdError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the content's
            raise DamagedError(f"expected a whole {self._kind} file, found a damaged one: {error!s:.200}") from None
        buffer[: len(block)] = block
        return len(block)


class _ZstdError(Exception):
    """Error that either zstd library's own errors are turned into."""


def _zstd(raw: BinaryIO) -> _Source:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        return _ZstdFrames(raw)

    class Own(zstd.ZstdFile):
        def read1(self, size: int = -1, /) -> bytes:
            try:
                return bytes(super().read1(size))
            except zstd.ZstdError as error:
                raise _ZstdError(str(error)) from None

    return Own(raw, options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW})


class _ZstdFrames:
    """The frames of a file by zstandard. Its own reader takes a file that is cut short for a whole one."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._library = zstandard
        self._raw = raw
        self._frame: Any = None
        self._ready = memoryview(b"")

    def read1(self, size: int, /) -> bytes:
        while not self._ready:
            given = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            given = given or self._raw.read(ZSTD_BLOCK)
            if self._frame is None or self._frame.eof:
                if not given:
                    return b""
                self._frame = self._library.ZstdDecompressor(max_window_size=1 << ZSTD_WINDOW).decompressobj()
            elif not given:
                raise EOFError
            try:
                self._ready = memoryview(self._frame.decompress(given))
            except self._library.ZstdError as error:
                raise _ZstdError(str(error)) from None
        block, self._ready = self._ready[:size], self._ready[size:]
        return bytes(block)
