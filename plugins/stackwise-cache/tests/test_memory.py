"""The memory backend: one pool for its stores, and what of it is on the device."""

import torch
from attrs import evolve

from stackwise_cache.memory import Memory
from stackwise_cache.options import MemoryOptions
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.options import ByteSize
from stackwise_core.testing.cache_backend import entries_of, keys_of

LAYOUT = Layout(tokens=4, d_model=8, dtype="bf16")


def test_what_one_store_gives_up_another_one_takes(tmp_path):
    """A boundary made of the one below, entry by entry, needs no second pool."""
    backend = Memory(MemoryOptions())
    below, above = (backend.open(tmp_path / name, LAYOUT, None) for name in ("below", "above"))
    (pool,) = backend._pools.values()
    below.put(keys_of(*range(8)), entries_of(LAYOUT, *range(8)))
    taken = sum(block.taken for block in pool._blocks)
    for number in range(8):
        below.discard(keys_of(number))
        above.put(keys_of(number), entries_of(LAYOUT, 50 + number))
    assert sum(block.taken for block in pool._blocks) == taken
    assert torch.equal(above.get(keys_of(*range(8))), entries_of(LAYOUT, *range(50, 58)))
    above.close()
    assert pool.bytes == 0


def test_other_layouts_have_pools_of_their_own(tmp_path):
    """Rows of two sizes don't mix."""
    backend = Memory(MemoryOptions())
    other = evolve(LAYOUT, tokens=6)
    stores = [(layout, backend.open(tmp_path, layout, None)) for layout in (LAYOUT, other)]
    for layout, store in stores:
        store.put(keys_of(1), entries_of(layout, 1))
    for layout, store in stores:
        assert torch.equal(store.get(keys_of(1)), entries_of(layout, 1))


def test_a_device_keeps_what_the_option_or_the_plan_leaves_it(tmp_path):
    """``device_memory`` bounds the bytes on a device, or else the plan does; a CPU has no memory of its own."""
    cases = (
        (MemoryOptions(), "cpu", 0),
        (MemoryOptions(device_memory=ByteSize(300)), "cpu", 0),
        (MemoryOptions(), "meta", 500),
        (MemoryOptions(device_memory=ByteSize(300)), "meta", 300),
        (MemoryOptions(device_memory=ByteSize(0)), "meta", 0),
    )
    for options, device, expected in cases:
        backend = Memory(options)
        backend.device, backend.device_room = torch.device(device), 500
        assert (backend.bytes_on_device(1000), backend.bytes_on_device(100)) == (expected, min(expected, 100))
        measured = backend.open(tmp_path, LAYOUT, None)
        measured.close()
        store = backend.open(tmp_path, LAYOUT, None)
        store.put(keys_of(1), entries_of(LAYOUT, 1))
        (pool,) = backend._pools.values()
        assert [each.type for each in pool.devices] == ["meta" if expected >= LAYOUT.bytes_per_entry else "cpu"]


def test_a_pool_that_is_there_follows_the_plan(tmp_path):
    """A store that is measured before the plan is made leaves a pool, which has the device's share afterwards."""
    backend = Memory(MemoryOptions())
    backend.device = torch.device("meta")
    backend.open(tmp_path, LAYOUT, None).close()
    backend.device_room = 10_000
    store = backend.open(tmp_path, LAYOUT, None)
    store.put(keys_of(1), entries_of(LAYOUT, 1))
    (pool,) = backend._pools.values()
    assert [each.type for each in pool.devices] == ["meta"]
