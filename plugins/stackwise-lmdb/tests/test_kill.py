"""kill -9 in the middle of reading."""

import os
import signal

import lmdb
import pytest

from stackwise_core.testing.cache_backend import entries_of, keys_of
from stackwise_core.testing.child import code_of, in_a_child


@pytest.mark.parametrize("killed", [True, False])
def test_a_killed_reader_keeps_no_pages(killed, open_store, directory, layout):
    """Deleted entries' pages are used again though a reader died with its transaction open; a live one keeps them."""
    store = open_store(capacity=8 * layout.bytes_per_entry)
    store.put(keys_of(*range(8)), entries_of(layout, *range(8)))
    store.flush()
    readable, writable = os.pipe()

    def read_and_wait() -> None:
        environment = lmdb.open(str(directory), max_dbs=2, readonly=True)
        with environment.begin():
            os.write(writable, b"r")
            signal.pause()

    reader = in_a_child(read_and_wait)
    os.read(readable, 1)
    if killed:
        os.kill(reader, signal.SIGKILL)
        assert code_of(reader) == -signal.SIGKILL
    size = (directory / "data.mdb").stat().st_size
    for number in range(8, 120):
        store.put(keys_of(number), entries_of(layout, number))
    store.flush()
    grown = (directory / "data.mdb").stat().st_size > 2 * size
    if not killed:
        os.kill(reader, signal.SIGKILL)
        code_of(reader)
    assert grown == (not killed)
