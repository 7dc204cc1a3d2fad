"""Damaged and hostile shards: a wrong activation is never given, and nothing crashes."""

import json
import struct
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch

from stackwise_core.interfaces.cache_backend import MissingEntries
from stackwise_core.testing.cache_backend import entries_of, everything_is_right, keys_of, readable_numbers

NUMBERS = (0, 1, 2, 3)
readable = partial(readable_numbers, numbers=NUMBERS)


@pytest.fixture
def shard(open_store, directory, layout):
    """The one file of a store of four entries."""
    open_store().put(keys_of(*NUMBERS), entries_of(layout, *NUMBERS))
    (path,) = directory.iterdir()
    return path


def first_activation(whole):
    """Where the payload of the shard's activations begins in the file."""
    (length,) = struct.unpack("<Q", whole[:8])
    return 8 + length + json.loads(whole[8 : 8 + length])["activations"]["data_offsets"][0]


def flipped(whole, place, bits):
    return whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]


def test_flips_in_header_keys_and_checksums(shard, open_store, layout):
    """Any byte outside of the activations may change: each entry is right or missing."""
    whole, rng = shard.read_bytes(), np.random.default_rng(0)
    payload = first_activation(whole)
    outside = [*range(payload), *range(payload + 4 * layout.bytes_per_entry, len(whole))]
    assert len(outside) == len(whole) - 4 * layout.bytes_per_entry > 128
    lost = 0
    for place in outside:
        shard.write_bytes(flipped(whole, place, int(rng.integers(1, 256))))
        lost += len(readable(open_store(), layout)) < 4
    assert lost >= 128  # each byte of keys and checksums matters


def test_flips_in_activations(shard, open_store, layout):
    """Any bit of an activation may flip: that entry alone is missing, and counted as damaged."""
    whole, rng = shard.read_bytes(), np.random.default_rng(1)
    payload = first_activation(whole)
    for _ in range(200):
        place = int(rng.integers(4 * layout.bytes_per_entry))
        shard.write_bytes(flipped(whole, payload + place, 1 << int(rng.integers(8))))
        store = open_store()
        assert readable(store, layout) == [each for each in NUMBERS if each != place // layout.bytes_per_entry]
        assert (store.stats().damaged, store.stats().entries) == (1, 3)


def test_flips_in_many_shards(open_store, directory, layout):
    """Random bytes of many files change: every entry that is given is right, and each one that isn't was counted."""
    store, rng = open_store(), np.random.default_rng(3)
    expected = dict(zip(keys_of(*range(160)), entries_of(layout, *range(160)), strict=True))
    store.put(list(expected), torch.stack(list(expected.values())))
    changed = rng.permutation(sorted(directory.iterdir()))[:25]
    for path in changed:
        whole = bytearray(path.read_bytes())
        for place in rng.integers(len(whole), size=int(rng.integers(1, 4))):
            whole[place] ^= int(rng.integers(1, 256))
        path.write_bytes(whole)
    store = open_store()
    refused = store.stats().damaged  # whole files
    entries = store.stats().entries
    right = everything_is_right(store, expected)
    stats = store.stats()
    assert entries - right == stats.damaged - refused > 0
    assert (stats.entries, stats.reads) == (right, right)
    assert 25 <= 160 - right <= 100


def test_a_damaged_entry_can_be_put_again(shard, open_store, layout):
    """What was computed anew is read from then on, also by the next store."""
    whole = shard.read_bytes()
    shard.write_bytes(flipped(whole, first_activation(whole), 1))
    store = open_store()
    assert readable(store, layout) == [1, 2, 3]
    store.put(keys_of(0), entries_of(layout, 0))
    store.close()
    assert readable(open_store(), layout) == [0, 1, 2, 3]


def test_damage_under_an_open_store(shard, open_store, layout):
    """A shard that is cut or overwritten after the store was opened is found out when it is read."""
    store = open_store()
    shard.write_bytes(shard.read_bytes()[: -3 * layout.bytes_per_entry])
    assert len(readable(store, layout)) < 4
    assert store.stats().damaged >= 3


def test_truncated_shards(shard, open_store, layout):
    """A file cut anywhere is deleted and counted, and the store goes on."""
    whole, rng = shard.read_bytes(), np.random.default_rng(2)
    for length in [*range(0, 40), *rng.integers(40, len(whole), 60).tolist(), len(whole) - 1]:
        shard.write_bytes(whole[:length])
        store = open_store()
        assert readable(store, layout) == []
        assert (store.stats().damaged, shard.exists()) == (1, False)


def header(**changes):
    """A header that describes one entry right, but for the changes."""
    tensors = {
        "activations": {"dtype": "F32", "shape": [1, 16, 32], "data_offsets": [0, 2048]},
        "keys": {"dtype": "U8", "shape": [1, 16], "data_offsets": [2048, 2064]},
        "checksums": {"dtype": "U8", "shape": [1, 16], "data_offsets": [2064, 2080]},
    }
    for name, change in changes.items():
        tensors[name] = change if change is None else {**tensors[name], **change}
    return json.dumps(tensors).encode()


def huge(count):
    """A header whose sizes are 0 in 64-bit arithmetic."""
    shapes = {"activations": [count, 16, 32], "keys": [count, 16], "checksums": [count, 16]}
    return header(**{name: {"shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()})


HOSTILE = {
    "not JSON": b"{" * 40,
    "not UTF-8": b"\xff\xfe" * 20,
    "deep": b"[" * 60_000,
    "a list": b"[1, 2]",
    "empty": b"{}",
    "null": header(keys=None),
    "no shape": header(activations={"shape": []}),
    "text for a shape": header(activations={"shape": "abc"}),
    "float count": header(activations={"shape": [1.0, 16, 32]}),
    "negative count": header(activations={"shape": [-1, 16, 32]}),
    "huge count": huge(2**60),
    "huger count": huge(10**40),
    "negative offsets": header(keys={"data_offsets": [-16, 0]}),
    "float offsets": header(activations={"data_offsets": [0.0, 2048.0]}),
    "offsets outside": header(checksums={"data_offsets": [10**15, 10**15 + 16]}),
    "offsets reversed": header(keys={"data_offsets": [2064, 2048]}),
    "offsets too short": header(activations={"data_offsets": [0, 2047]}),
    "one offset": header(activations={"data_offsets": [0]}),
    "another dtype": header(activations={"dtype": "I32"}),
    "keys over activations": header(keys={"data_offsets": [0, 16]}),
}


@pytest.mark.parametrize("length", [None, 0, 2**16 + 1, 2**40, 2**64 - 1], ids=str)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(what, length, open_store, directory, layout):
    """Whatever a header says, the store opens, finds none of our entries, and takes little memory."""
    text = HOSTILE[what]
    directory.mkdir()
    length = len(text) if length is None else length
    (directory / "bad.safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(2080))
    tracemalloc.start()
    try:
        store = open_store()
        assert readable(store, layout) == []
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_the_harmless_header_is_read(open_store, directory, layout):
    """The header that the hostile ones were made from describes a shard: they are refused for what was changed."""
    directory.mkdir()
    text = header()
    (directory / "good.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(2080))
    store = open_store()
    assert store.contains([bytes(16)]) == [True]
    assert store.stats().damaged == 0
    with pytest.raises(MissingEntries):  # its checksum is zeros
        store.get([bytes(16)])
