"""kill -9 in the middle of writing."""

import random
from functools import partial

import pytest

from stackwise_core.testing.cache_backend import entries_of, everything_is_right, key_of
from stackwise_core.testing.child import killed


def write_for_ever(opened, order, expected, tell):
    """Put entries again and again, flush after some of them, and say so."""
    store = opened()
    while True:
        for number in order:
            store.put([key_of(number)], expected[key_of(number)][None])
            if number % 3 == 0:
                store.flush()
                tell(number)


@pytest.mark.slow
def test_kills_while_shards_are_evicted(open_store, directory, layout):
    """One small store, killed 40 times as it writes and evicts: it is never too large, and never wrong."""
    expected = {key_of(number): entries_of(layout, number)[0] for number in range(100)}
    capacity, full = 20 * layout.bytes_per_entry, 0
    opened = partial(open_store, capacity=capacity)
    for kill in range(40):
        order = random.Random(kill).sample(range(100), 100)
        killed(partial(write_for_ever, opened, order, expected), random.uniform(0, 0.03))
        store = open_store()
        stats = store.stats()
        assert everything_is_right(store, expected) == stats.entries > 0
        # A kill may come between a shard's publication and the eviction that it calls for.
        assert stats.bytes <= capacity + 5 * layout.bytes_per_entry
        assert stats.damaged == 0
        assert list(directory.glob(".*.tmp")) == []
        full += stats.bytes > capacity // 2
    assert full > 20  # so there was something to evict
