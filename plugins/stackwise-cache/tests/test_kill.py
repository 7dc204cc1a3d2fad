"""kill -9 in the middle of writing."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.testing.cache_backend import (
    code_of,
    entries_of,
    everything_is_right,
    in_a_child,
    key_of,
    keys_of,
)

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


def write_for_ever(opened, order, expected, acknowledge):
    """Put entries again and again, flush after some of them, and say so on a pipe."""
    store = opened()
    while True:
        for number in order:
            store.put([key_of(number)], expected[key_of(number)][None])
            if number % 3 == 0:
                store.flush()
                os.write(acknowledge, bytes([number]))


def test_kills_while_shards_are_evicted(open_store, directory, layout):
    """One small store, killed 40 times as it writes and evicts: it is never too large, and never wrong."""
    expected = {key_of(number): entries_of(layout, number)[0] for number in range(100)}
    capacity, full = 20 * layout.bytes_per_entry, 0
    for kill in range(40):
        order = random.Random(kill).sample(range(100), 100)
        readable, writable = os.pipe()
        writer = in_a_child(partial(write_for_ever, partial(open_store, capacity=capacity), order, expected, writable))
        os.close(writable)
        os.read(readable, 1)
        time.sleep(random.uniform(0, 0.03))
        os.kill(writer, signal.SIGKILL)
        assert code_of(writer) == -signal.SIGKILL
        os.close(readable)
        store = open_store()
        stats = store.stats()
        assert everything_is_right(store, expected) == stats.entries > 0
        # A kill may come between a shard's publication and the eviction that it calls for.
        assert stats.bytes <= capacity + 5 * layout.bytes_per_entry
        assert stats.damaged == 0
        assert list(directory.glob(".*.tmp")) == []
        full += stats.bytes > capacity // 2
    assert full > 20  # so there was something to evict
