"""The environment's files, and several stores and processes over them."""

import os
import resource
import signal

import lmdb
import pytest
import torch

from stackwise_core.interfaces.cache_backend import MissingEntries
from stackwise_core.testing.cache_backend import entries_of, keys_of
from stackwise_core.testing.child import code_of, in_a_child
from stackwise_lmdb import environment


def fill(store, layout, *numbers):
    store.put(keys_of(*numbers), entries_of(layout, *numbers))


def holds(store, layout, *numbers):
    return torch.equal(store.get(keys_of(*numbers)), entries_of(layout, *numbers))


def size(directory):
    return (directory / "data.mdb").stat().st_size


def test_lmdb_reads_it(open_store, directory, layout):
    """The plain library finds key, checksum and activation of each entry, in the order of writing."""
    store = open_store()
    fill(store, layout, 3, 1, 2)
    store.close()
    with lmdb.open(str(directory), max_dbs=2, readonly=True) as plain:
        entries = plain.open_db(b"entries", create=False)
        with plain.begin(db=entries) as transaction:
            found = [value for _, value in transaction.cursor()]
    assert [value[:16] for value in found] == keys_of(3, 1, 2)
    assert b"".join(value[32:] for value in found) == entries_of(layout, 3, 1, 2).numpy().tobytes()


def test_a_batch_is_written_when_it_is_full(open_store, layout):
    """Entries wait for their transaction; another store sees them when it is done."""
    store, other = open_store(), open_store()
    fill(store, layout, *range(6))
    assert other.contains(keys_of(*range(6))) == [True] * 4 + [False] * 2
    store.flush()
    assert holds(other, layout, *range(6))


def test_the_map_grows(monkeypatch, open_store, directory, layout):
    """A store takes more than the map that it began with, and another store in this process goes on beside it."""
    monkeypatch.setattr(environment, "FIRST_MAP", 1 << 16)
    store, other = open_store(), open_store()
    fill(store, layout, *range(200))
    store.flush()
    assert size(directory) > 200 * layout.bytes_per_entry > 1 << 16
    assert holds(store, layout, *range(200))
    assert holds(other, layout, *range(200))


def test_another_process_grows_the_map(monkeypatch, open_store, layout):
    """What it wrote behind the end of this process's map is read."""
    monkeypatch.setattr(environment, "FIRST_MAP", 1 << 16)
    store = open_store()
    fill(store, layout, 0, 1, 2, 3)

    def write():
        other = open_store()
        fill(other, layout, *range(200))
        other.close()

    assert code_of(in_a_child(write)) == 0
    assert holds(store, layout, *range(200))


def test_the_file_is_as_large_as_its_pages(open_store, directory, layout):
    """A large map takes no room on the disk."""
    store = open_store()
    fill(store, layout, *range(20))
    store.close()
    status = (directory / "data.mdb").stat()
    assert 20 * layout.bytes_per_entry < 512 * status.st_blocks < 80 * layout.bytes_per_entry + (1 << 17)
    assert status.st_size < environment.FIRST_MAP


def test_room_of_deleted_entries_is_used_again(open_store, directory, layout):
    """A store that is kept full does not grow."""
    store = open_store(capacity=20 * layout.bytes_per_entry)
    fill(store, layout, *range(60))
    full = size(directory)
    for first in range(60, 1200, 4):
        fill(store, layout, *range(first, first + 4))
    assert size(directory) <= 1.5 * full
    assert store.stats().entries == 20


def test_the_oldest_of_a_reopened_store_go_first(open_store, layout):
    """What this store hasn't used yet goes in the order of writing, before what it has."""
    store = open_store()
    fill(store, layout, *range(10))
    store.close()
    again = open_store()
    again.get(keys_of(0))
    again.contains(keys_of(2))
    again.shrink(5 * layout.bytes_per_entry)
    assert again.contains(keys_of(*range(10))) == [number in (0, 2, 7, 8, 9) for number in range(10)]
    fill(again, layout, 10)
    again.shrink(3 * layout.bytes_per_entry)
    again.close()
    assert set(open_store().keys()) == set(keys_of(8, 9, 10))


def test_two_stores_write_the_same_directory(open_store, layout):
    """One environment serves both; each finds what the other wrote, and an entry of both is there once."""
    one, two = open_store(), open_store()
    fill(one, layout, *range(4))
    fill(two, layout, *range(2, 6))
    one.close()
    two.close()
    again = open_store()
    assert holds(again, layout, *range(6))
    assert (again.stats().entries, two.stats().duplicates) == (6, 2)


def test_another_stores_drop_is_a_miss(open_store, directory, layout):
    """Entries that another store in this process has deleted are missing, and can be put again."""
    one, two = open_store(), open_store()
    fill(one, layout, *range(4))
    assert holds(two, layout, *range(4))
    one.drop()
    assert not directory.exists()
    with pytest.raises(MissingEntries):
        two.get(keys_of(0, 1, 2, 3))
    fill(two, layout, *range(4))
    assert holds(two, layout, *range(4))
    assert (one.stats().damaged, two.stats().damaged) == (0, 0)


def test_another_processs_drop_is_a_miss(open_store, layout):
    """So are those that another process has deleted, also where it has made a new environment since."""
    store = open_store()
    fill(store, layout, *range(4))
    assert holds(store, layout, 3)

    def drop_and_fill():
        other = open_store()
        other.drop()
        fill(other, layout, 3)
        other.close()

    assert code_of(in_a_child(drop_and_fill)) == 0
    assert store.contains(keys_of(*range(4))) == [False, False, False, True]
    assert holds(store, layout, 3)
    fill(store, layout, *range(4))
    assert (holds(store, layout, *range(4)), store.stats().damaged) == (True, 0)


def test_a_fork_opens_its_own(open_store, layout):
    """A child reads and writes through the store that it inherited, and its parent goes on."""
    store = open_store()
    fill(store, layout, *range(4))

    def work():
        assert holds(store, layout, *range(4))
        fill(store, layout, *range(4, 8))
        store.flush()

    assert [code_of(child) for child in [in_a_child(work) for _ in range(3)]] == [0, 0, 0]
    fill(store, layout, *range(8, 12))
    assert holds(store, layout, *range(12))


def test_stores_that_are_let_go_of_close_their_environment(open_store, directory, layout):
    """Nothing stays open behind the last of them: other users of LMDB may open it."""
    store = open_store()
    fill(store, layout, *range(4))
    with pytest.raises(lmdb.Error, match="already open"):
        lmdb.open(str(directory))
    del store
    lmdb.open(str(directory), max_dbs=2).close()


def test_foreign_things_are_left_alone(open_store, directory, layout):
    """Other files in the directory are neither read nor deleted."""
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    store = open_store()
    fill(store, layout, *range(4))
    store.drop()
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_what_may_not_be_written_is_read(monkeypatch, open_store, directory, layout):
    """An environment of somebody else's is opened for reading; writing to it is LMDB's own error."""
    store = open_store()
    fill(store, layout, *range(4))
    store.close()
    before = (directory / "data.mdb").read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    store = open_store(capacity=16 * layout.bytes_per_entry)
    assert holds(store, layout, 2, 3)
    store.flush()
    fill(store, layout, 4)
    with pytest.raises(lmdb.ReadonlyError):
        store.flush()
    assert (directory / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("room", [0, 5_000, 100_000])
def test_a_full_disk_evicts(room, open_store, directory, layout):
    """What the disk has no room for is counted as evicted, and what is there stays; room that is made is used."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        store = open_store()
        for number in range(80):
            fill(store, layout, number)
        store.flush()
        stats, there = store.stats(), list(store.keys())
        assert stats.evicted == 80 - len(there) > 0
        assert (stats.writes, stats.damaged) == (80, 0)
        assert (len(there) > 0) == (room == 100_000)
        assert all(holds(store, layout, number) for number in range(80) if keys_of(number)[0] in there)
        assert not directory.exists() or size(directory) <= room
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        fill(store, layout, *range(80))
        store.close()
        assert holds(open_store(), layout, *range(80))

    assert code_of(in_a_child(work)) == 0


def test_what_is_discarded_goes_a_batch_at_a_time(open_store, layout):
    """Also where nothing is put any more: to count what is left is to look up all that waits to be deleted."""
    store, other = open_store(), open_store()  # batches of four
    fill(store, layout, *range(12))
    for number in range(10):
        store.discard(keys_of(number))
        assert len(store._hidden) < 4
    assert store.stats().entries == 2
    assert other.contains(keys_of(*range(12))) == [False] * 8 + [True] * 4  # two wait yet
