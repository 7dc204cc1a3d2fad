"""kill -9 in the middle of writing, and of reading."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
import torch

from stackwise_core.testing.cache_backend import code_of, entries_of, in_a_child, keys_of
from stackwise_lmdb.options import LmdbOptions
from stackwise_lmdb.store import Lmdb

KILLS = 10


def test_what_was_flushed_survives_a_kill(tmp_path, layout):
    """After each kill all that was flushed is there, and all that is there is right."""
    directories = [tmp_path / str(kill) for kill in range(KILLS)]
    writer = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run([sys.executable, writer, *directories], capture_output=True, text=True, check=True)
    acknowledged = [int(line) for line in done.stdout.split()]
    assert len(acknowledged) == KILLS
    for directory, least in zip(directories, acknowledged, strict=True):
        store = Lmdb(LmdbOptions(batch_entries=4)).open(directory, layout, None)
        there = [number for number in range(least + 100) if store.contains(keys_of(number)) == [True]]
        assert there == list(range(len(there)))
        assert len(there) >= least > 0
        assert torch.equal(store.get(keys_of(*there)), entries_of(layout, *there))
        assert (store.stats().entries, store.stats().damaged) == (len(there), 0)


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
