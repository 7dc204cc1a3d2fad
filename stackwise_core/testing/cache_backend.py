"""Contract that every cache backend must hold."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, Key, Layout, MissingEntries
from stackwise_core.testing.child import code_of, in_a_child, killed
from stackwise_core.testing.damage import cut, delete, flip

KILLS = 4


def key_of(number: int) -> Key:
    """Return 16 bytes that no other number has."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def keys_of(*numbers: int) -> list[Key]:
    """Return the keys of these numbers, in order."""
    return [key_of(number) for number in numbers]


def entries_of(layout: Layout, *numbers: int) -> Tensor:
    """Return the entries that the tests put under these numbers' keys.

    They are [n, tokens, row], each of other bits than the others.
    """
    rows = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        if layout.torch_dtype.is_floating_point:
            rows.append(torch.randn(layout.shape, generator=generator).to(layout.torch_dtype))
        else:
            rows.append(torch.randint(256, layout.shape, dtype=layout.torch_dtype, generator=generator))
    return torch.stack(rows)


def everything_is_right(store: ActivationStore, expected: dict[Key, Tensor]) -> int:
    """Read each entry that the store says it has; how many were still there. All that it gives must be right."""
    found = 0
    for key in list(store.keys()):
        try:
            (entry,) = store.get([key])
        except MissingEntries:
            continue
        assert torch.equal(entry, expected[key])
        found += 1
    return found


def readable_numbers(store: ActivationStore, layout: Layout, numbers: Sequence[int]) -> list[int]:
    """Return the numbers whose entries the store returns. Every returned entry must be right."""
    found = []
    for number in numbers:
        try:
            entry = store.get(keys_of(number))
        except MissingEntries:
            continue
        assert torch.equal(entry, entries_of(layout, number))
        found.append(number)
    return found


def check_recovery(opened: Callable[[], ActivationStore], layout: Layout, numbers: Sequence[int]) -> None:
    """Open a store with damaged files, read it, fill it, and read it again. It must work like a new one."""
    store = opened()
    before = readable_numbers(store, layout, numbers)
    keys = keys_of(*numbers)
    assert set(store.keys()) >= set(keys_of(*before))
    # A key that became another one is missing, and known to be damaged by who asks for the other.
    assert before == list(numbers) or store.stats().damaged > 0 or set(store.keys()) != set(keys)
    store.put(keys, entries_of(layout, *numbers))
    store.close()
    assert readable_numbers(opened(), layout, numbers) == list(numbers)


class CacheBackendContract:
    """Contract of a cache backend: subclass it and provide the fixture ``backend``.

    Give a backend that gathers entries before it writes them a small unit (4 entries), so that the tests meet it.
    """

    @pytest.fixture
    def backend(self) -> CacheBackend:
        """Return the backend to test."""
        raise NotImplementedError("the subclass provides the fixture `backend`")

    @pytest.fixture(params=["bf16", "fp32", "int8"])
    def layout(self, request: pytest.FixtureRequest) -> Layout:
        """Return the layout of activations [16, 32] in each format."""
        return Layout(tokens=16, d_model=32, dtype=request.param)

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Return the directory of the store; nothing is there yet."""
        return tmp_path / "cache" / "namespace"

    @pytest.fixture
    def store(self, backend: CacheBackend, directory: Path, layout: Layout) -> ActivationStore:
        """Return an empty store without a limit."""
        return backend.open(directory, layout, None)

    def test_gives_what_was_put(self, store: ActivationStore, layout: Layout) -> None:
        """Entries come back bit for bit, in the layout's dtype, on the CPU."""
        store.put(keys_of(*range(10)), entries_of(layout, *range(10)))
        found = store.get(keys_of(*range(10)))
        assert (found.dtype, found.device.type) == (layout.torch_dtype, "cpu")
        assert torch.equal(found, entries_of(layout, *range(10)))

    def test_rows_are_in_the_keys_order(self, store: ActivationStore, layout: Layout) -> None:
        """``get`` answers in the order that it was asked in, and as often."""
        store.put(keys_of(*range(6)), entries_of(layout, *range(6)))
        assert torch.equal(store.get(keys_of(5, 0, 3, 0, 0)), entries_of(layout, 5, 0, 3, 0, 0))

    def test_read_into_fills_what_get_gives(self, store: ActivationStore, layout: Layout) -> None:
        """``read_into`` fills the entries that it is given, of any strides, as ``get`` does, and touches no others."""
        store.put(keys_of(*range(6)), entries_of(layout, *range(6)))
        store.flush()
        store.put(keys_of(6), entries_of(layout, 6))
        slot = entries_of(layout, *range(20, 26))
        reads = store.stats().reads
        store.read_into(keys_of(5, 0, 6, 0), slot[1:5])
        assert torch.equal(slot, entries_of(layout, 20, 5, 0, 6, 0, 25))
        assert store.stats().reads == reads + 4
        strided = entries_of(layout, 30, 31).transpose(1, 2).contiguous().transpose(1, 2)
        store.read_into(keys_of(4, 6), strided)
        assert torch.equal(strided, entries_of(layout, 4, 6))
        with pytest.raises(MissingEntries) as caught:
            store.read_into(keys_of(7, 1, 8), slot[:3])
        assert set(caught.value.keys) == set(keys_of(7, 8))

    def test_calls_may_come_from_any_thread(self, store: ActivationStore, layout: Layout) -> None:
        """Another thread reads what one has put, adds to it and makes it durable, one call at a time."""

        def elsewhere() -> Tensor:
            store.put(keys_of(2), entries_of(layout, 2))
            store.prefetch(keys_of(0, 1))
            store.flush()
            return store.get(keys_of(1, 2))

        store.put(keys_of(0, 1), entries_of(layout, 0, 1))
        with ThreadPoolExecutor(1) as thread:
            assert torch.equal(thread.submit(elsewhere).result(), entries_of(layout, 1, 2))
        assert torch.equal(store.get(keys_of(2, 0)), entries_of(layout, 2, 0))

    def test_no_keys_are_no_entries(self, store: ActivationStore, layout: Layout) -> None:
        """An empty question has an empty answer."""
        store.put([], torch.empty((0, *layout.shape), dtype=layout.torch_dtype))
        assert store.get([]).shape == (0, *layout.shape)
        assert store.contains([]) == []

    def test_contains(self, store: ActivationStore, layout: Layout) -> None:
        """One answer a key, in order."""
        store.put(keys_of(1, 2), entries_of(layout, 1, 2))
        assert store.contains(keys_of(2, 9, 1)) == [True, False, True]

    def test_missing_entries_are_named(self, store: ActivationStore, layout: Layout) -> None:
        """``get`` raises with the keys that aren't there, and only these."""
        store.put(keys_of(1), entries_of(layout, 1))
        with pytest.raises(MissingEntries) as caught:
            store.get(keys_of(7, 1, 8))
        assert set(caught.value.keys) == set(keys_of(7, 8))

    def test_a_key_that_is_there_stays(self, store: ActivationStore, layout: Layout) -> None:
        """The first of two activations under one key is kept, and the second counted."""
        store.put(keys_of(1), entries_of(layout, 1))
        store.put(keys_of(2, 1, 2), entries_of(layout, 2, 3, 4))
        assert torch.equal(store.get(keys_of(1, 2)), entries_of(layout, 1, 2))
        assert (store.stats().writes, store.stats().duplicates, store.stats().entries) == (2, 2, 2)

    def test_entries_are_the_stores_own(self, store: ActivationStore, layout: Layout) -> None:
        """A caller's later changes to its tensors change nothing in the store."""
        given = entries_of(layout, 1, 2)
        store.put(keys_of(1, 2), given)
        given.zero_()
        store.get(keys_of(1, 2)).zero_()
        assert torch.equal(store.get(keys_of(1, 2)), entries_of(layout, 1, 2))

    def test_activations_may_be_of_any_kind(self, store: ActivationStore, layout: Layout) -> None:
        """Tensors on autograd's graph, and ones that aren't contiguous, are stored like others."""
        given = entries_of(layout, 1, 2).transpose(1, 2).contiguous().transpose(1, 2)
        store.put(keys_of(1, 2), given.requires_grad_(given.is_floating_point()))
        found = store.get(keys_of(1, 2))
        assert not found.requires_grad
        assert torch.equal(found, entries_of(layout, 1, 2))

    def test_capacity_is_kept(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """A store never holds more bytes than its capacity; what went is counted, what stays is right."""
        capacity = 20 * layout.bytes_per_entry
        store = backend.open(directory, layout, capacity)
        for number in range(60):
            store.put(keys_of(number), entries_of(layout, number))
            assert store.stats().bytes <= capacity
        store.flush()
        there = [number for number in range(60) if store.contains(keys_of(number)) == [True]]
        assert 0 < len(there) <= 20
        assert torch.equal(store.get(keys_of(*there)), entries_of(layout, *there))
        stats = store.stats()
        assert (stats.entries, stats.evicted, stats.bytes <= capacity) == (len(there), 60 - len(there), True)

    def test_the_least_recently_used_goes_first(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """An entry that is read or asked after time and again outlives those that nobody wants."""
        store = backend.open(directory, layout, 20 * layout.bytes_per_entry)
        for number in range(60):
            store.put(keys_of(number), entries_of(layout, number))
            assert torch.equal(store.get(keys_of(0)), entries_of(layout, 0))
            assert store.contains(keys_of(min(number, 5))) == [True]
        assert store.contains(keys_of(0, 5, 59, 10)) == [True, True, True, False]

    def test_keys_are_those_that_are_there(self, store: ActivationStore, layout: Layout) -> None:
        """``keys`` names each entry once, whether it was made durable or not."""
        assert list(store.keys()) == []
        store.put(keys_of(*range(6)), entries_of(layout, *range(6)))
        store.flush()
        store.put(keys_of(9, 0, 9), entries_of(layout, 9, 0, 9))
        assert sorted(store.keys()) == sorted(keys_of(*range(6), 9))
        store.drop()
        assert list(store.keys()) == []

    def test_shrink_evicts_the_least_recently_used(
        self, backend: CacheBackend, directory: Path, layout: Layout
    ) -> None:
        """A store keeps to the new capacity: it evicts the least recently used entries, and counts them."""
        store = backend.open(directory, layout, 40 * layout.bytes_per_entry)
        for number in range(31):
            store.put(keys_of(number), entries_of(layout, number))
            store.get(keys_of(0))
        store.flush()
        store.shrink(20 * layout.bytes_per_entry)
        assert store.contains(keys_of(0, 30)) == [True, True]
        there = list(store.keys())
        stats = store.stats()
        assert stats.bytes <= 20 * layout.bytes_per_entry
        assert (stats.entries, stats.evicted) == (len(there), 31 - len(there))
        assert everything_is_right(store, {key_of(each): entries_of(layout, each)[0] for each in range(31)}) == len(
            there
        )
        store.shrink(0)
        assert (store.stats().entries, store.stats().evicted, store.stats().bytes) == (0, 31, 0)
        assert store.contains(keys_of(0, 30)) == [False, False]

    def test_what_has_no_room_is_evicted(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """Entries that the capacity can't hold raise nothing: they were written, and are counted as evicted."""
        for capacity in (0, layout.bytes_per_entry - 1):
            store = backend.open(directory, layout, capacity)
            store.put(keys_of(1, 2, 3), entries_of(layout, 1, 2, 3))
            store.flush()
            assert store.contains(keys_of(1, 2, 3)) == [False] * 3
            stats = store.stats()
            assert (stats.writes, stats.evicted, stats.entries, stats.bytes) == (3, 3, 0, 0)

    def test_discarded_entries_are_not_lost_ones(self, store: ActivationStore, layout: Layout) -> None:
        """``discard`` counts nothing as evicted or damaged, spares all other entries, and bars no key for ever."""
        store.put(keys_of(*range(10)), entries_of(layout, *range(10)))
        store.flush()
        store.put(keys_of(10, 11), entries_of(layout, 10, 11))
        store.discard(iter(keys_of(*range(6), 10, 77)))
        assert torch.equal(store.get(keys_of(6, 7, 8, 9, 11)), entries_of(layout, 6, 7, 8, 9, 11))
        stats = store.stats()
        assert (stats.evicted, stats.damaged) == (0, 0)
        assert stats.entries == len(list(store.keys())) == sum(store.contains(keys_of(*range(12))))
        store.put(keys_of(*range(12)), entries_of(layout, *range(12)))
        assert torch.equal(store.get(keys_of(*range(12))), entries_of(layout, *range(12)))

    def test_drop_empties_the_store(self, store: ActivationStore, directory: Path, layout: Layout) -> None:
        """Nothing is found after ``drop``, no file is left, and the store can be filled again."""
        store.put(keys_of(*range(9)), entries_of(layout, *range(9)))
        store.flush()
        store.drop()
        assert store.contains(keys_of(*range(9))) == [False] * 9
        assert (store.stats().entries, store.stats().bytes) == (0, 0)
        assert [path for path in directory.rglob("*") if path.is_file()] == []
        store.put(keys_of(3), entries_of(layout, 3))
        assert torch.equal(store.get(keys_of(3)), entries_of(layout, 3))

    def test_prefetch_changes_nothing(self, store: ActivationStore, layout: Layout) -> None:
        """Keys may be announced whether they are there or not, and needn't be read."""
        store.put(keys_of(*range(6)), entries_of(layout, *range(6)))
        store.flush()
        store.prefetch(keys_of(1, 77, 5))
        assert store.contains(keys_of(77)) == [False]
        assert torch.equal(store.get(keys_of(4, 5)), entries_of(layout, 4, 5))

    def test_stats_count(self, store: ActivationStore, layout: Layout) -> None:
        """Entries, writes, reads and bytes are counted, and an answer doesn't change after it was given."""
        before = store.stats()
        store.put(keys_of(*range(8)), entries_of(layout, *range(8)))
        store.flush()
        store.get(keys_of(1, 2, 3))
        stats = store.stats()
        assert (stats.entries, stats.writes, stats.reads, stats.evicted, stats.damaged) == (8, 8, 3, 0, 0)
        assert stats.bytes >= 8 * layout.bytes_per_entry
        assert (before.entries, before.writes, before.reads) == (0, 0, 0)

    def test_flushed_entries_are_there_again(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """Entries that a durable store flushed or closed are found by the next one; a capacity holds from the start."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")
        store = backend.open(directory, layout, None)
        store.put(keys_of(*range(9)), entries_of(layout, *range(9)))
        store.flush()
        again = backend.open(directory, layout, None)
        assert torch.equal(again.get(keys_of(*range(9))), entries_of(layout, *range(9)))
        again.put(keys_of(9), entries_of(layout, 9))
        again.close()
        assert torch.equal(backend.open(directory, layout, None).get(keys_of(9, 0)), entries_of(layout, 9, 0))
        small = backend.open(directory, layout, 7 * layout.bytes_per_entry)
        assert small.stats().bytes <= 7 * layout.bytes_per_entry

    def test_flushed_entries_survive_a_kill(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """Flushed entries survive a kill -9 of the process, and every other entry that is found is right."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")
        expected = {key_of(number): entries_of(layout, number) for number in range(16)}

        def write_and_die() -> None:
            store = backend.open(directory, layout, None)
            for done, (key, entry) in enumerate(expected.items(), start=1):
                store.put([key], entry)
                if done == 9:
                    store.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        assert code_of(in_a_child(write_and_die)) == -signal.SIGKILL
        store = backend.open(directory, layout, None)
        assert store.contains(keys_of(*range(9))) == [True] * 9
        there = list(store.keys())
        assert everything_is_right(store, {key: entry[0] for key, entry in expected.items()}) == len(there)

    def test_flushed_entries_survive_kills_at_any_instant(
        self, backend: CacheBackend, directory: Path, layout: Layout
    ) -> None:
        """A store that is killed at any instant keeps what was flushed; the rest is right, and nothing is damaged."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")

        def write_for_ever(namespace: Path, tell: Callable[[int], None]) -> None:
            store, number = backend.open(namespace, layout, None), 0
            while True:
                store.put(keys_of(number), entries_of(layout, number))
                number += 1
                if number % 3 == 0:
                    store.flush()
                    tell(number)

        for kill in range(KILLS):
            namespace = directory / str(kill)
            flushed = killed(partial(write_for_ever, namespace), random.uniform(0, 0.1))
            store = backend.open(namespace, layout, None)
            there = [number for number in range(flushed + 100) if store.contains(keys_of(number)) == [True]]
            assert there[:flushed] == list(range(flushed))
            assert torch.equal(store.get(keys_of(*there)), entries_of(layout, *there))
            assert (store.stats().entries, store.stats().damaged) == (len(there), 0)

    def test_damage_is_found(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """After damage to its files, every entry of a durable store is right or missing, and can be put again."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")
        rng, numbers = np.random.default_rng(7), range(12)

        def fill(namespace: Path) -> None:
            store = backend.open(namespace, layout, None)
            for number in numbers:
                store.put(keys_of(number), entries_of(layout, number))
                if number % 3 == 2:
                    store.flush()
            store.close()

        for harm in (flip, cut, delete):
            namespace = directory / harm.__name__
            fill(namespace)
            harm(rng, sorted(path for path in namespace.rglob("*") if path.is_file()))
            opened = partial(backend.open, namespace, layout, None)
            # In a child, since what was harmed may end the process that reads it.
            code = code_of(in_a_child(partial(check_recovery, opened, layout, numbers)))
            assert code == 0, harm.__name__

    def test_readers_beside_a_writer(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """Other processes that open a store while one writes, evicts and drops are given nothing that isn't right."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")
        expected = {key_of(number): entries_of(layout, number)[0] for number in range(60)}

        def write_for_ever() -> None:
            store, serial = backend.open(directory, layout, 30 * layout.bytes_per_entry), 0
            while True:
                keys = [key_of((7 * serial + place) % 60) for place in range(5)]
                store.put(keys, torch.stack([expected[key] for key in keys]))
                store.flush()
                serial += 1
                if serial % 20 == 0:
                    store.drop()

        def read_much() -> None:
            found = 0
            for _ in range(1000):
                store = backend.open(directory, layout, None)
                found += everything_is_right(store, expected)
                store.close()
                if found >= 150:
                    return
                time.sleep(0.001)
            raise AssertionError(f"readers found {found} entries in 1000 openings")

        writer = in_a_child(write_for_ever)
        try:
            readers = [in_a_child(read_much) for _ in range(3)]
            assert [code_of(reader) for reader in readers] == [0, 0, 0]
        finally:
            os.kill(writer, signal.SIGKILL)
            assert code_of(writer) == -signal.SIGKILL, "the writer failed"

    def test_entries_belong_to_their_namespace(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """Files that come from the store of another name give nothing, though their keys are the same."""
        if not backend.durable:
            pytest.skip("its entries end with the process, as it says")
        store = backend.open(directory, layout, None)
        store.put(keys_of(*range(5)), entries_of(layout, *range(5)))
        store.close()
        shutil.copytree(directory, directory.with_name("another"))
        other = backend.open(directory.with_name("another"), layout, None)
        for number in range(5):
            with pytest.raises(MissingEntries):
                other.get(keys_of(number))
        assert other.stats().damaged > 0

    def test_opening_writes_nothing(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """The directory is made when something is first written."""
        backend.open(directory, layout, None).close()
        assert not directory.exists()

    def test_it_agrees_with_a_dict(self, backend: CacheBackend, directory: Path, layout: Layout) -> None:
        """A store and a dict stay equal through hundreds of random puts, gets, flushes, drops and reopenings."""
        rng = np.random.default_rng(5)
        store, model = backend.open(directory, layout, None), dict[int, int]()
        for serial in range(250):
            numbers = rng.integers(0, 60, rng.integers(1, 7)).tolist()
            action = rng.choice(
                ["put", "get", "contains", "flush", "reopen", "drop"], p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.02]
            )
            if action == "put":
                contents = [1000 * serial + place for place in range(len(numbers))]
                store.put(keys_of(*numbers), entries_of(layout, *contents))
                for number, content in zip(numbers, contents, strict=True):
                    model.setdefault(number, content)
            elif action == "get" and set(numbers) <= set(model):
                assert torch.equal(store.get(keys_of(*numbers)), entries_of(layout, *(model[each] for each in numbers)))
            elif action == "get":
                with pytest.raises(MissingEntries) as caught:
                    store.get(keys_of(*numbers))
                assert set(caught.value.keys) == set(keys_of(*(set(numbers) - set(model))))
            elif action == "contains":
                assert store.contains(keys_of(*numbers)) == [number in model for number in numbers]
            elif action == "flush":
                store.flush()
            elif action == "reopen" and backend.durable:
                store.close()
                store = backend.open(directory, layout, None)
            elif action == "drop":
                store.drop()
                model.clear()
            assert store.stats().entries == len(model)
