"""Rows in blocks: reused, gathered, given back, and on the device as far as its share goes."""

import pytest
import torch

from stackwise_cache import pool as module
from stackwise_cache.pool import Pool
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.cache_backend import entries_of

CPU = torch.device("cpu")
LAYOUT = Layout(tokens=4, d_model=8, dtype="bf16")
ODD = Layout(tokens=3, d_model=3, dtype="int8")
"""Rows of 21 bytes, which no larger integer divides."""


@pytest.fixture
def _blocks_of_four(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_BLOCK", 4 * LAYOUT.bytes_per_entry)


def filled(pool: Pool, layout: Layout, count: int) -> list[int]:
    places = [pool.take() for _ in range(count)]
    for place, entry in zip(places, entries_of(layout, *range(count)), strict=True):
        pool.write(place, entry)
    return places


@pytest.mark.parametrize("layout", [LAYOUT, ODD, Layout(tokens=2, d_model=3, dtype="fp32")])
def test_rows_of_one_block_and_of_several_are_those_written(layout, monkeypatch):
    """A gather within a block and copies out of several give the bits that were put, into a part of a tensor, too."""
    monkeypatch.setattr(module, "SMALLEST_BLOCK", 4 * layout.bytes_per_entry)
    pool = Pool(layout, CPU, 0)
    places = filled(pool, layout, 10)
    for wanted in ([3, 0, 3], [9, 1, 5, 2], []):
        slot = entries_of(layout, *range(20, 26))
        pool.read([places[each] for each in wanted], slot[1 : 1 + len(wanted)])
        assert torch.equal(slot[1 : 1 + len(wanted)], entries_of(layout, *wanted) if wanted else slot[:0])
        assert torch.equal(slot[[0, 5]], entries_of(layout, 20, 25))


@pytest.mark.usefixtures("_blocks_of_four")
def test_blocks_double_and_what_is_given_back_is_taken_first():
    """Few blocks, and none for an entry that finds a free row; without any entry no memory is held."""
    pool = Pool(LAYOUT, CPU, 0)
    places = filled(pool, LAYOUT, 16)
    size = pool.bytes
    assert (len(pool.devices), size) == (3, 16 * LAYOUT.bytes_per_entry)
    for place in places[:5]:
        pool.give_back(place)
    again = [pool.take() for _ in range(5)]
    assert (sorted(again), pool.bytes) == (sorted(places[:5]), size)
    for place in places:
        pool.give_back(place)
    assert pool.bytes == 0
    assert filled(pool, LAYOUT, 1) == [0]


@pytest.mark.usefixtures("_blocks_of_four")
def test_no_block_is_larger_than_what_may_be_needed():
    """A store with a capacity gives rows back, and never has more of them."""
    pool = Pool(LAYOUT, CPU, 0)
    pool.take(2)
    assert pool.bytes == 2 * LAYOUT.bytes_per_entry


@pytest.mark.usefixtures("_blocks_of_four")
def test_a_device_has_its_share_and_the_host_the_rest():
    """Blocks are on the device until its share is used up; with no rows in use it has all of its share again."""
    device = torch.device("meta")  # stands for one with memory of its own
    pool = Pool(LAYOUT, device, 6 * LAYOUT.bytes_per_entry)
    for _ in range(2):
        places = [pool.take() for _ in range(10)]
        assert [each.type for each in pool.devices] == ["meta", "meta", "cpu"]
        for place in places:
            pool.give_back(place)
