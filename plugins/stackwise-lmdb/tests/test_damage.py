"""Damaged environments: a wrong activation is never given, and nothing crashes."""

import random
import struct
from functools import partial

import pytest

from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.cache_backend import check_recovery, entries_of, keys_of, readable_numbers
from stackwise_core.testing.child import code_of, in_a_child

NUMBERS = range(40)
readable = partial(readable_numbers, numbers=NUMBERS)
PAGE = 4096


@pytest.fixture
def data(open_store, directory, layout):
    """The file of a closed store of some entries, from which some were deleted."""
    store = open_store()
    store.put(keys_of(*NUMBERS, 50, 51, 52), entries_of(layout, *NUMBERS, 50, 51, 52))
    store.flush()
    store.discard(keys_of(50, 51, 52))
    store.close()
    return directory / "data.mdb"


def tree_pages(whole):
    """Where the pages are that aren't an entry's payload."""
    return [place for place in range(0, len(whole), PAGE) if struct.unpack_from("<H", whole, place + 10)[0] & 0b1011]


def recovers(data, open_store, layout, damage):
    """In a child, since a crash is what is tested for: open what ``damage`` made, read it, fill it, read it again."""
    whole = data.read_bytes()

    def work():
        damage()
        check_recovery(open_store, layout, NUMBERS)

    code = code_of(in_a_child(work))
    data.write_bytes(whole)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_random_bytes(seed, data, open_store, layout):
    """Bytes anywhere may change, those of the tree above all: each entry is right or missing, and can be put again."""
    rng, whole = random.Random(seed), data.read_bytes()
    for _ in range(30):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5, 50])):
            page = rng.choice(tree_pages(whole)) if rng.random() < 0.8 else rng.randrange(0, len(whole), PAGE)
            damaged[page + rng.randrange(rng.choice([200, PAGE]))] = rng.randrange(256)
        assert recovers(data, open_store, layout, lambda damaged=damaged: data.write_bytes(damaged)) == 0


@pytest.mark.slow
def test_truncated_files(data, open_store, layout):
    """A file cut anywhere is deleted and counted, and the store goes on."""
    rng, whole = random.Random(1), data.read_bytes()
    lengths = [1, 100, PAGE, PAGE + 100, 2 * PAGE, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(14))]
    for length in lengths:
        assert recovers(data, open_store, layout, lambda length=length: data.write_bytes(whole[:length])) == 0


@pytest.mark.parametrize("pages", [0, 1, 2, 5, 20])
def test_a_file_cut_under_an_open_store(pages, data, open_store, layout):
    """It is found out before the next read, which would end the process."""

    def work():
        store = open_store()
        assert readable(store, layout) == list(NUMBERS)
        with data.open("r+b") as file:
            file.truncate(pages * PAGE)
        assert readable(store, layout) == []
        assert store.stats().damaged == 1
        store.put(keys_of(1), entries_of(layout, 1))
        store.close()
        assert readable(open_store(), layout) == [1]

    assert code_of(in_a_child(work)) == 0


def test_a_flipped_bit_of_an_activation(data, open_store, layout):
    """That entry alone is missing and counted, can be put again, and is then there for the next store."""
    whole = data.read_bytes()
    place = whole.index(entries_of(layout, 7).numpy().tobytes()) + 1000
    data.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    store = open_store()
    others = [number for number in NUMBERS if number != 7]
    assert readable(store, layout) == others
    assert (store.stats().damaged, store.stats().entries) == (1, len(others))
    store.put(keys_of(7), entries_of(layout, 7))
    assert store.stats().duplicates == 0
    store.close()
    assert readable(open_store(), layout) == list(NUMBERS)


def test_another_layout_is_refused(open_store, directory):
    """Equal keys of other shapes or formats are never read as ours: the environment is dropped and counted."""
    layout = Layout(tokens=16, d_model=32, dtype="fp32")
    others = [
        Layout(tokens=32, d_model=16, dtype="fp32"),
        Layout(tokens=16, d_model=64, dtype="bf16"),
        Layout(tokens=16, d_model=32, dtype="bf16"),
    ]
    for other in others:
        theirs = open_store(layout=other)
        theirs.put(keys_of(*range(4)), entries_of(other, *range(4)))
        theirs.close()
        found = open_store(layout=layout)
        assert found.contains(keys_of(*range(4))) == [False] * 4
        assert (found.stats().damaged, directory.exists()) == (1, False)


def test_what_is_no_environment(open_store, directory, layout):
    """Any other file in its place is dropped and counted."""
    directory.mkdir()
    (directory / "data.mdb").write_bytes(b"mine" * 5000)
    store = open_store()
    assert (store.stats().damaged, directory.exists()) == (1, False)
    store.put(keys_of(1), entries_of(layout, 1))
    store.close()
    assert readable(open_store(), layout) == [1]


def test_a_damaged_lock_file_is_made_anew(data, open_store, layout):
    """Nobody has it open, so nothing in it matters."""
    lock = data.with_name("lock.mdb")
    for content in (b"", b"\xff" * 100, b"\xff" * lock.stat().st_size):
        lock.write_bytes(content)
        assert code_of(in_a_child(lambda: readable(open_store(), layout) == list(NUMBERS) or 1 / 0)) == 0
