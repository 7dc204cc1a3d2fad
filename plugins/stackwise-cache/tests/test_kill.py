"""kill -9 in the middle of writing."""

import subprocess
import sys
from pathlib import Path

import torch

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.testing.cache_backend import entries_of, keys_of

KILLS = 10


def test_what_was_flushed_survives_a_kill(tmp_path, layout):
    """After each kill all that was flushed is there, all that is there is right, and no half-written file remains."""
    directories = [tmp_path / str(kill) for kill in range(KILLS)]
    writer = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run([sys.executable, writer, *directories], capture_output=True, text=True, check=True)
    acknowledged = [int(line) for line in done.stdout.split()]
    assert len(acknowledged) == KILLS
    for directory, least in zip(directories, acknowledged, strict=True):
        store = Disk(DiskOptions(shard_entries=4)).open(directory, layout, None)
        there = [number for number in range(least + 100) if store.contains(keys_of(number)) == [True]]
        assert there == list(range(len(there)))
        assert len(there) >= least > 0
        assert torch.equal(store.get(keys_of(*there)), entries_of(layout, *there))
        assert (store.stats().entries, store.stats().damaged) == (len(there), 0)
        assert list(directory.glob(".*.tmp")) == []
