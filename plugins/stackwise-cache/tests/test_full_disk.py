"""A disk that fills up while boundaries are written."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stackwise_cache import shard
from stackwise_core.interfaces.cache_backend import MissingEntries
from stackwise_core.testing.cache_backend import entries_of, keys_of


@pytest.fixture
def disk(monkeypatch):
    """A disk that has room for so many shards, and else raises ``error``; how often it did is ``failures``."""

    class Disk:
        room, error, failures = 3, errno.ENOSPC, 0

        def publish(self, path, write):
            if len(list(path.parent.glob("*.safetensors"))) >= self.room:
                self.failures += 1
                raise OSError(self.error, "no more")
            publish(path, write)

    publish, disk = shard.publish, Disk()
    monkeypatch.setattr(shard, "publish", disk.publish)
    return disk


def there(store, count):
    return [number for number in range(count) if store.contains(keys_of(number)) == [True]]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_the_least_recently_used_shards_make_room(error, disk, open_store, layout):
    """When the disk is full the oldest shards go, as they would for a capacity, and are counted."""
    disk.error, store = error, open_store()
    store.put(keys_of(*range(12)), entries_of(layout, *range(12)))
    store.get(keys_of(1))
    store.put(keys_of(*range(12, 20)), entries_of(layout, *range(12, 20)))
    assert there(store, 20) == [0, 1, 2, 3, *range(12, 20)]
    assert (store.stats().evicted, store.stats().writes, disk.failures) == (8, 20, 2)
    assert torch.equal(store.get(keys_of(*range(12, 20))), entries_of(layout, *range(12, 20)))


def test_with_nothing_left_to_evict_the_entries_are_given_up(disk, open_store, directory, layout):
    """A disk that others have filled costs entries, not the run; later ones are kept as soon as there is room."""
    disk.room, store = 0, open_store()
    store.put(keys_of(*range(6)), entries_of(layout, *range(6)))
    store.flush()
    assert (there(store, 6), store.stats().evicted, store.stats().bytes) == ([], 6, 0)
    with pytest.raises(MissingEntries):
        store.get(keys_of(0))
    disk.room = 3
    store.put(keys_of(*range(4)), entries_of(layout, *range(4)))
    assert torch.equal(store.get(keys_of(*range(4))), entries_of(layout, *range(4)))
    assert len(list(directory.iterdir())) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_other_errors_are_raised(error, disk, open_store, layout):
    """A disk that is broken or forbidden says so, and again at the next try; nothing is evicted for it."""
    disk.error, store = error, open_store()
    store.put(keys_of(*range(12)), entries_of(layout, *range(12)))
    for number in (12, 16):
        with pytest.raises(OSError) as caught:
            store.put(keys_of(*range(number, number + 4)), entries_of(layout, *range(number, number + 4)))
        assert caught.value.errno == error
    disk.room = 9
    store.flush()
    assert there(store, 20) == list(range(16))
    assert torch.equal(store.get(keys_of(*range(16))), entries_of(layout, *range(16)))
    assert store.stats().evicted == 0


ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path

import torch

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.cache_backend import entries_of, keys_of

disk, layout = Path(sys.argv[1]), Layout(tokens=16, d_model=32, dtype="fp32")
store = Disk(DiskOptions(shard_entries=16)).open(disk / "namespace", layout, None)
for number in range(1000):  # twice what the disk holds
    store.put(keys_of(number), entries_of(layout, number))
store.flush()
there = [number for number in range(1000) if store.contains(keys_of(number)) == [True]]
assert torch.equal(store.get(keys_of(*there)), entries_of(layout, *there))
stats = store.stats()
hidden = [path.name for path in disk.rglob(".*")]
(disk / "others").write_bytes(bytes(4096))
store.drop()
try:
    with (disk / "others").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
store.put(keys_of(*range(40)), entries_of(layout, *range(40)))
store.flush()
after = store.stats()
print(json.dumps([len(there), there[-1], stats.writes, stats.evicted, hidden, after.entries, after.evicted]))
"""


@pytest.mark.slow
def test_a_really_full_disk(tmp_path):
    """On a file system of 1 MB that runs full, what is kept is right, what isn't is counted, and nothing is raised."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$0"'
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, tmp_path], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a file system can't be mounted here: {tried.stderr.strip()}")
    command = f'{mounted} && exec "$@" "$0"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, tmp_path, sys.executable, "-c", ON_A_SMALL_DISK],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    count, newest, writes, evicted, hidden, after, evicted_after = json.loads(done.stdout)
    assert 300 < count < 512
    assert (newest, writes, evicted, hidden) == (999, 1000, 1000 - count, [])
    assert (after, evicted_after) == (0, evicted + 40)
    assert list(Path(tmp_path).iterdir()) == []  # the small disk is gone with its process
