"""Files on disk: what they are, when they go, and several stores over them."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.interfaces.cache_backend import Layout, MissingEntries
from stackwise_core.testing.cache_backend import entries_of, keys_of


def fill(store, layout, *numbers):
    store.put(keys_of(*numbers), entries_of(layout, *numbers))


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def test_shards_are_safetensors(open_store, directory, layout):
    """The plain library reads a shard: keys and activations in the order in which they were put."""
    fill(open_store(), layout, 3, 1, 2, 0)
    (path,) = shards(directory)
    tensors = load_file(path)
    assert tensors["keys"].numpy().tobytes() == b"".join(keys_of(3, 1, 2, 0))
    assert torch.equal(tensors["activations"], entries_of(layout, 3, 1, 2, 0))


def test_a_shard_is_written_when_it_is_full(open_store, directory, layout):
    """Entries wait for their shard; ``flush`` writes the rest, and nothing twice."""
    store = open_store()
    fill(store, layout, *range(10))
    assert len(shards(directory)) == 2
    store.flush()
    store.flush()
    assert len(shards(directory)) == 3


def test_eviction_deletes_files(open_store, directory, layout):
    """The bytes on disk stay within the capacity, and are what ``stats`` says."""
    store = open_store(capacity=20 * layout.bytes_per_entry)
    fill(store, layout, *range(60))
    on_disk = sum(path.stat().st_size for path in shards(directory))
    assert 0 < on_disk == store.stats().bytes <= 20 * layout.bytes_per_entry
    assert store.stats().evicted == 60 - store.stats().entries > 0


def test_the_least_recently_read_shard_goes_first(open_store, layout):
    """Reading and asking both count as use."""
    store = open_store(capacity=20 * layout.bytes_per_entry)  # four shards of four
    fill(store, layout, *range(16))
    store.get(keys_of(1))
    store.contains(keys_of(9))
    fill(store, layout, *range(16, 24))
    assert store.contains(keys_of(1, 5, 9, 13, 17, 21)) == [True, False, True, False, True, True]


def test_shards_are_small_beside_the_capacity(directory, open_store, layout):
    """A capacity of less than a shard isn't exceeded: shards are cut down to a quarter of it."""
    store = open_store(capacity=5 * layout.bytes_per_entry)
    fill(store, layout, *range(12))
    assert 0 < store.stats().bytes <= 5 * layout.bytes_per_entry
    assert store.contains(keys_of(11)) == [True]


def test_the_file_is_the_librarys(open_store, directory, layout, tmp_path):
    """A shard has the bytes that the safetensors library writes for its tensors."""
    fill(open_store(), layout, 3, 1, 2, 0)
    (path,) = shards(directory)
    save_file(load_file(path), tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_discard_deletes_files(open_store, directory, layout):
    """When all entries of a shard were discarded its file goes, and nothing is counted as evicted or damaged."""
    store = open_store()
    fill(store, layout, *range(10))
    store.discard(keys_of(0, 1, 2, 4, 5, 6, 8, 99))
    assert (len(shards(directory)), store.stats().entries) == (2, 3)
    assert store.contains(keys_of(*range(10))) == [each in (3, 7, 9) for each in range(10)]
    store.discard(keys_of(3))
    assert torch.equal(load_file(shards(directory)[0])["activations"], entries_of(layout, 4, 5, 6, 7))
    assert len(shards(directory)) == 1
    store.close()
    store = open_store()
    assert (store.contains(keys_of(9)), len(shards(directory))) == ([True], 2)
    store.discard(store.keys())
    assert (list(store.keys()), shards(directory)) == ([], [])
    assert (store.stats().bytes, store.stats().evicted, store.stats().damaged) == (0, 0, 0)


def test_discarded_entries_can_be_put_again(open_store, directory, layout):
    """What was discarded is written anew, and the shard that holds the older of two equal entries goes in time."""
    store = open_store()
    fill(store, layout, *range(4))
    store.discard(keys_of(0, 1))
    fill(store, layout, 0, 1, 8, 9)
    assert len(shards(directory)) == 2
    store.discard(keys_of(2, 3))
    assert len(shards(directory)) == 1
    assert torch.equal(open_store().get(keys_of(9, 1, 8, 0)), entries_of(layout, 9, 1, 8, 0))


def test_shrink_gives_up_waiting_entries_last(open_store, layout):
    """What isn't written yet was used last: it goes when no file is left to go, the oldest first."""
    store = open_store()
    fill(store, layout, *range(7))
    store.shrink(2 * layout.bytes_per_entry)
    assert store.contains(keys_of(*range(7))) == [False] * 5 + [True, True]
    assert (store.stats().evicted, store.stats().bytes) == (5, 2 * layout.bytes_per_entry)
    fill(store, layout, 7, 8)
    assert torch.equal(open_store().get(keys_of(5, 6, 7, 8)), entries_of(layout, 5, 6, 7, 8))


def test_drop_removes_the_directory(open_store, directory, layout):
    """Nothing is left, not even the empty folder."""
    store = open_store()
    fill(store, layout, *range(6))
    store.drop()
    assert not directory.exists()


def test_orphans_are_swept(open_store, directory, layout):
    """A half-written file of a process that is gone is deleted when the store is opened."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    directory.mkdir()
    orphans = [directory / f".aa.safetensors.{pid}.tmp" for pid in (gone.pid, os.getpid())]
    for orphan in orphans:
        orphan.write_bytes(b"half")
    open_store()
    assert [orphan for orphan in orphans if orphan.exists()] == []


def test_what_is_being_written_stays(open_store, directory):
    """A reader that opens the store doesn't delete the file that a writer is about to rename."""
    directory.mkdir()
    beside = directory / f".aa.safetensors.{os.getppid()}.tmp"
    beside.write_bytes(b"half")
    open_store()
    assert beside.exists()


def test_two_stores_write_the_same_directory(open_store, directory, layout):
    """Both read what they put, equal shards become one file, and a third store finds everything."""
    one, two = open_store(), open_store()
    fill(one, layout, *range(4))
    fill(two, layout, *range(4))
    fill(one, layout, 4, 5, 6)
    fill(two, layout, 6, 7, 8)
    one.close()
    two.close()
    assert len(shards(directory)) == 3
    assert torch.equal(open_store().get(keys_of(*range(9))), entries_of(layout, *range(9)))


def test_what_another_store_deleted_gives_its_room_back(open_store, layout, directory):
    """A file that was open for reading still gives its entries, until the store is next asked what it has."""

    def held() -> list[str]:
        names = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # of the listing itself
                names.append(os.readlink(link))
        return [name for name in names if name.startswith(str(directory)) and name.endswith("(deleted)")]

    one = open_store()
    fill(one, layout, *range(4))
    two = open_store()
    two.get(keys_of(0))
    one.drop()
    assert torch.equal(two.get(keys_of(0)), entries_of(layout, 0))
    assert len(held()) == 1
    two.contains(keys_of(0))
    assert held() == []


def test_another_stores_drop_is_a_miss(open_store, layout):
    """Shards that another store has deleted are missing and no crash, and can be put again."""
    one = open_store()
    fill(one, layout, *range(4))
    two = open_store()
    one.drop()
    two.prefetch(keys_of(0))
    with pytest.raises(MissingEntries):
        two.get(keys_of(0, 1, 2, 3))
    assert (two.stats().entries, two.stats().damaged, two.stats().evicted) == (0, 0, 0)
    fill(two, layout, *range(4))
    assert torch.equal(two.get(keys_of(*range(4))), entries_of(layout, *range(4)))


def test_a_shard_of_another_layout_is_refused(open_store, directory, layout):
    """Equal keys of other shapes or formats are never read as ours: the shard is dropped and counted."""
    others = [
        Layout(tokens=32, d_model=16, dtype="fp32"),
        Layout(tokens=16, d_model=64, dtype="bf16"),
        Layout(tokens=16, d_model=32, dtype="bf16"),
    ]
    for other in others:
        store = open_store(layout=other)
        fill(store, other, *range(4))
        found = open_store()
        assert found.contains(keys_of(*range(4))) == [False] * 4
        assert (found.stats().damaged, shards(directory)) == (1, [])


def test_foreign_things_are_left_alone(open_store, directory, layout):
    """Other files and folders in the directory are neither read nor deleted."""
    (directory / "folder.safetensors").mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    store = open_store()
    fill(store, layout, 1)
    store.drop()
    assert {path.name for path in directory.iterdir()} == {"folder.safetensors", "notes.txt"}


def test_a_shard_of_large_entries_has_fewer(open_store, layout, directory, monkeypatch):
    """What waits in memory for its shard is bounded in bytes, and the backend says by how many."""
    assert Disk(DiskOptions(shard_entries=4)).buffer_bytes(layout) == 4 * layout.bytes_per_entry
    monkeypatch.setattr("stackwise_core.interfaces.cache_backend.LARGEST_BUFFER", 3 * layout.bytes_per_entry)
    assert Disk(DiskOptions(shard_entries=4)).buffer_bytes(layout) == 3 * layout.bytes_per_entry
    fill(open_store(), layout, *range(6))
    assert len(shards(directory)) == 2
    monkeypatch.setattr("stackwise_core.interfaces.cache_backend.LARGEST_BUFFER", 1)
    assert Disk(DiskOptions(shard_entries=4)).buffer_bytes(layout) == layout.bytes_per_entry


def failing(monkeypatch, function, number):
    """Let the first call fail as a disk does."""
    original, tried = getattr(os, function), []

    def fail_at_first(*arguments):
        tried.append(arguments)
        if len(tried) == 1:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(os, function, fail_at_first)


def test_what_the_disk_cannot_read_is_damaged(open_store, layout, monkeypatch):
    """A bad sector is no reason to stop: the entry is missing, and counted."""
    store = open_store()
    fill(store, layout, *range(8))
    failing(monkeypatch, "preadv", errno.EIO)
    with pytest.raises(MissingEntries) as missing:
        store.get(keys_of(0, 1, 2))
    assert missing.value.keys == keys_of(0)
    assert store.stats().damaged == 1
    assert torch.equal(store.get(keys_of(1, 2)), entries_of(layout, 1, 2))


def test_an_index_that_the_disk_cannot_read_is_damaged(open_store, directory, layout, monkeypatch):
    """The shard is as good as none, and the others are there."""
    store = open_store()
    fill(store, layout, *range(8))
    store.close()
    failing(monkeypatch, "pread", errno.EIO)
    store = open_store()
    assert (store.stats().entries, store.stats().damaged, len(shards(directory))) == (4, 1, 1)


def test_other_errors_of_reading_are_no_damage(open_store, layout, monkeypatch):
    """Whoever may not read is told so, and nothing is thrown away for it."""
    store = open_store()
    fill(store, layout, *range(8))
    failing(monkeypatch, "preadv", errno.EACCES)
    with pytest.raises(PermissionError):
        store.get(keys_of(0))
    assert store.contains(keys_of(0)) == [True]


def test_flush_lets_go_of_files_and_buffers(open_store, directory, layout):
    """A store that nobody uses for a while holds nothing open, and goes on as before."""
    store = open_store()
    fill(store, layout, *range(10))
    assert torch.equal(store.get(keys_of(*range(10))), entries_of(layout, *range(10)))
    assert open_files(directory)
    store.flush()
    assert not open_files(directory)
    assert store._buffer is None
    fill(store, layout, 10)
    assert torch.equal(store.get(keys_of(*range(11))), entries_of(layout, *range(11)))


def open_files(directory):
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.exists(link) and os.readlink(link).startswith(str(directory))]
