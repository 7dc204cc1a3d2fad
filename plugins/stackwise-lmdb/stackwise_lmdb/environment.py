"""One LMDB environment: opened once in a process, checked before it is trusted, grown by need.

It has two databases and a record of the layout. ``entries`` has a serial number (8 bytes) -> an entry, ``index`` a key
(16 bytes) -> the serial number of its entry. Serial numbers rise, so that entries are in the order of writing.

LMDB reads through a memory map, where a page behind the end of the file kills the process, and it follows the page
numbers that it reads. So the whole tree is walked by lmdb's own verifier, which needs no map, before anything is read,
and the size of the file is looked at before each transaction.
"""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import lmdb
from lmdb.verify import VerifyError, verify

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.system.files import sync

FIRST_MAP = 1 << 30
"""Bytes of address space that an environment begins with. The file takes what is in it, not this."""

DATA, LOCK = "data.mdb", "lock.mdb"
_LAYOUT, _ENTRIES, _INDEX = b"stackwise-lmdb", b"entries", b"index"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EIO}  # EIO: LMDB's word for half a write
_LACKING = {errno.ENODEV, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
    lmdb.IncompatibleError,
    lmdb.BadValsizeError,
    lmdb.BadTxnError,
    lmdb.BadDbiError,
    lmdb.NotFoundError,
    lmdb.MapResizedError,  # again, after the map was adapted
)

Found = TypeVar("Found")


class Damaged(Exception):
    """Error of an environment that can't be trusted, or holds entries of another layout."""


class Gone(Exception):
    """Error of an environment whose files were deleted or replaced since they were opened."""


class NoRoom(Exception):
    """Error of a full disk: what was to be written isn't, and what was there before still is."""


class Environment:
    """The environment of one directory. Get it from :func:`attach`: LMDB forbids opening it twice in a process."""

    def __init__(self, directory: Path, layout: Layout, create: bool) -> None:
        """Open, check, and record the layout in an empty one.

        Raises:
            Damaged: it isn't whole, or of another layout.
            Gone: there is none, and it isn't to be made.
            NoRoom: it can't be made for want of room.
            StackwiseError: the file system lacks a call that LMDB needs.
        """
        self.layout, self._namespace = layout, directory.name
        self._data, self._lock_file = directory / DATA, directory / LOCK
        self._lock = threading.RLock()
        if not create and not _size(self._data):
            raise Gone
        made = not _size(self._data)
        self.readonly = self._data.exists() and not os.access(self._data, os.W_OK)
        try:
            self._open(directory, create)
            if made:
                sync(directory)
            self._identity = self._files()
            self._trust(create)
        except (lmdb.Error, OSError) as error:
            self.close()
            code = error.code if isinstance(error, lmdb.Error) else error.errno
            if code == errno.ENOENT:  # deleted while it was being opened
                raise Gone from error
            if made and code in _FULL:
                remove(directory)
                raise NoRoom from error
            if code in _LACKING:
                if made:
                    remove(directory)
                raise StackwiseError(
                    f"{directory}: LMDB maps and locks its files, and the file system here can't "
                    f"({os.strerror(code)}). Name a cache_backend.directory on another one, or take "
                    'cache_backend.use = "disk".'
                ) from error
            if isinstance(error, _DAMAGE) or _problems(self._data):
                raise Damaged from error
            if create and code in _FULL:
                raise NoRoom from error
            raise
        except (Damaged, Gone):
            self.close()
            raise

    def _open(self, directory: Path, create: bool) -> None:
        if create and not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            sync(directory.parent)
        # Each commit syncs its pages, and the next one, or ``sync``, what says that they count.
        self._lmdb = lmdb.open(
            str(directory),
            create=False,
            map_size=max(FIRST_MAP, 2 * _size(self._data)),
            max_dbs=2,
            metasync=False,
            meminit=False,
            max_spare_txns=0,  # a fork would share it
            readonly=self.readonly,
            lock=not self.readonly or os.access(self._lock_file, os.W_OK),
        )

    def _trust(self, create: bool) -> None:
        """Walk the tree while no other process can write, and compare the layout."""
        self._page = self._lmdb.stat()["psize"]
        self._lmdb.reader_check()
        with self._lmdb.begin(write=not self.readonly) as transaction:
            self._verify()
            recorded = transaction.get(_LAYOUT)
            if recorded is None and transaction.stat()["entries"] == 0:
                if not create:
                    raise Gone
                transaction.put(_LAYOUT, _signature(self._namespace, self.layout))
                for name in (_ENTRIES, _INDEX):
                    self._lmdb.open_db(name, transaction)
            elif recorded != _signature(self._namespace, self.layout):
                raise Damaged
        self._entries, self._index = (self._lmdb.open_db(name, create=False) for name in (_ENTRIES, _INDEX))

    def _verify(self) -> None:
        if _problems(self._data):
            raise Damaged
        if not self.readonly:
            self._fit()

    def _fit(self) -> None:
        """Make the file as long as its pages, while no other process can write.

        Pages at its end may have been freed before they were ever written; a commit that failed leaves some behind it.
        """
        if _size(self._data) != self._pages_end():
            with suppress(OSError):
                os.truncate(self._data, self._pages_end())

    def _pages_end(self) -> int:
        return (self._lmdb.info()["last_pgno"] + 1) * self._page

    def _files(self) -> list[tuple[int, int]]:
        """List device and inode of the files that are in place."""
        if self.readonly:
            stats = [os.stat(self._data)]
        else:
            stats = [os.stat(self._data), os.stat(self._lock_file)]
        return [(each.st_dev, each.st_ino) for each in stats]

    def check(self) -> None:
        """Look at the files before LMDB does.

        Raises:
            Damaged, Gone: see there.
        """
        with self._guarded():
            self._check()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let one thread at a time in, since a map that grows moves; turn LMDB's errors into this module's."""
        with self._lock:
            try:
                yield
            except lmdb.PanicError:  # it refuses everything until it is opened again
                self.close()
                raise Gone from None
            except _DAMAGE as error:
                raise Damaged from error

    def _check(self) -> None:
        try:
            if not self.alive or self._files() != self._identity:
                raise Gone
            size = self._data.stat().st_size
        except FileNotFoundError:
            raise Gone from None
        if size < 2 * self._page:  # not even the two pages that say how many there are
            raise Damaged
        if size < self._pages_end():
            with self._begin(write=not self.readonly):
                self._verify()

    @property
    def alive(self) -> bool:
        """Whether the environment is open and its file still exists. Another store may have deleted it."""
        return getattr(self, "_lmdb", None) is not None

    def read(self, work: "Callable[[Reader], Found]") -> Found:
        """Return what ``work`` finds in one consistent state.

        Raises:
            Damaged, Gone: see there.
        """
        with self._guarded():
            self._check()
            with self._begin(write=False) as transaction:
                return work(Reader(transaction, self._entries, self._index))

    def write(self, work: "Callable[[Writer], None]") -> None:
        """Do all of ``work`` or nothing. It may be called again with more room.

        Raises:
            Damaged, Gone, NoRoom: see there.
        """
        with self._guarded():
            self._check()
            self._lmdb.reader_check()  # readers that were killed would keep their pages from being used again
            try:
                while not self._committed(work):
                    self._lmdb.set_mapsize(2 * self._lmdb.info()["map_size"])
            except lmdb.Error as error:
                if error.code not in _FULL:
                    raise
                self._give_back()
                raise NoRoom from error
            if _size(self._data) < self._pages_end():
                self._give_back()

    def _committed(self, work: "Callable[[Writer], None]") -> bool:
        try:
            with self._begin(write=True) as transaction:
                work(Writer(transaction, self._entries, self._index))
        except lmdb.MapFullError:
            return False
        return True

    def _give_back(self) -> None:
        """Undo a failed commit: cut off the pages it wrote, or lengthen the file by the pages it didn't write."""
        try:
            with self._lmdb.begin(write=True):
                self._fit()
        except lmdb.Error:
            self.close()  # the next to open it will look

    def _begin(self, write: bool) -> lmdb.Transaction:
        try:
            return self._lmdb.begin(write=write, buffers=True)
        except lmdb.MapResizedError:  # another process has grown it
            try:
                self._lmdb.set_mapsize(0)
            except lmdb.Error:  # by more than can be; whoever opens it again looks closer
                self.close()
                raise Gone from None
        except lmdb.ReadersFullError:
            self._lmdb.reader_check()
        return self._lmdb.begin(write=write, buffers=True)

    def sync(self) -> None:
        """Make all that was written durable."""
        with self._lock:
            if self.alive and not self.readonly:
                self._lmdb.sync(True)

    def close(self) -> None:
        """Close it for all of this process's stores."""
        with self._lock:
            if self.alive:
                self._lmdb.close()
                del self._lmdb


class Reader:
    """One state of the environment. What it gives lies in the map, and is valid while the transaction lasts."""

    def __init__(self, transaction: lmdb.Transaction, entries: lmdb._Database, index: lmdb._Database) -> None:
        self._transaction, self._entries, self._index = transaction, entries, index

    def count(self) -> int:
        """Return the number of keys."""
        return self._transaction.stat(self._index)["entries"]

    def has(self, key: bytes) -> bool:
        """Return whether a key has an entry."""
        return self._transaction.get(key, db=self._index) is not None

    def entry(self, key: bytes) -> memoryview | None:
        """Return the entry of a key; empty where the key is indexed but its entry is missing."""
        serial = self._transaction.get(key, db=self._index)
        if serial is None:
            return None
        return memoryview(self._transaction.get(serial, b"", db=self._entries))

    def keys(self) -> list[bytes]:
        """List all keys."""
        with self._transaction.cursor(self._index) as cursor:
            return [bytes(key) for key in cursor.iternext(values=False)]

    def written_from(self, serial: int, wanted: Callable[[memoryview], bool]) -> int:
        """Show entries in the order of writing to ``wanted``, until it says no.

        Return the serial number to resume from.
        """
        with self._transaction.cursor(self._entries) as cursor:
            more = cursor.set_range(_serial(serial))
            while more and wanted(memoryview(cursor.value())):
                serial = int.from_bytes(cursor.key(), "big") + 1
                more = cursor.next()
        return serial


class Writer(Reader):
    """Transaction that writes: a state in the making."""

    def delete(self, key: bytes) -> None:
        """Delete a key and its entry, if they are there."""
        serial = self._transaction.pop(key, db=self._index)
        if serial is not None:
            self._transaction.delete(bytes(serial), db=self._entries)

    def append(self, entries: dict[bytes, bytearray]) -> None:
        """Add entries behind all others, but for keys that are there already."""
        with self._transaction.cursor(self._entries) as cursor:
            serial = int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 0
        for key, entry in entries.items():
            if self._transaction.put(key, _serial(serial), db=self._index, overwrite=False):
                self._transaction.put(_serial(serial), entry, db=self._entries, append=True)
                serial += 1


_OPEN: WeakValueDictionary[str, Environment] = WeakValueDictionary()
_OPENING = threading.RLock()


def attach(directory: Path, layout: Layout, create: bool) -> Environment:
    """Return the environment of a directory.

    This process's stores share it; it closes when the last of them lets it go.

    Raises:
        Damaged, Gone, NoRoom: see :class:`Environment`.
    """
    name = os.path.realpath(directory)
    with _OPENING:
        environment = _OPEN.get(name)
        if environment is not None and environment.alive:
            try:
                environment.check()
            except Gone:
                environment.close()
            else:
                if environment.layout != layout:
                    raise Damaged
                return environment
        environment = _OPEN[name] = Environment(directory, layout, create)
        return environment


def remove(directory: Path) -> None:
    """Delete the environment's files, and the directory if nothing else is in it."""
    with _OPENING:
        environment = _OPEN.pop(os.path.realpath(directory), None)
        if environment is not None:
            environment.close()
        for name in (DATA, LOCK):
            (directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # it isn't empty, or isn't there
            directory.rmdir()


def _after_fork() -> None:
    """Close a forked child's copies. It opens its own: LMDB's locks and reader slots are its parent's."""
    global _OPENING
    _OPENING = threading.RLock()
    for environment in list(_OPEN.values()):
        environment._lock = threading.RLock()
        environment.close()
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _signature(namespace: str, layout: Layout) -> bytes:
    return f"2 {namespace} {layout.tokens} {layout.d_model} {layout.dtype}".encode()


def _serial(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it doesn't exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _problems(data: Path) -> bool:
    """Return whether the file is there and isn't a sound environment. It is read, not mapped."""
    if not _size(data):
        return False
    try:
        return bool(verify(str(data), subdir=False))
    except (VerifyError, struct.error, IndexError, RecursionError, OverflowError):
        return True
