"""Each check of CacheBackendContract refuses a backend that is wrong in just that."""

import hashlib
import os
import pickle
import threading
import time
from contextlib import nullcontext, suppress

import pytest
import torch

from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, CacheStats, Layout, MissingEntries
from stackwise_core.testing.cache_backend import CacheBackendContract

DIGEST = 32


def checksum(content):
    return hashlib.sha256(content).digest()


def unpacked(whole):
    return pickle.loads(whole[DIGEST:])


class RightStore(ActivationStore):
    """One file under a checksum, rewritten by each flush."""

    def __init__(self, directory, layout, capacity):
        self.file, self.layout, self.capacity = directory / "all", layout, capacity
        self.entries, self.counts = {}, CacheStats()
        self.read(self.file.parent.name)
        self.put_since = False
        self.evict()

    def read(self, namespace):
        with suppress(FileNotFoundError):
            whole = self.file.read_bytes()
            if checksum(whole[DIGEST:]) != whole[:DIGEST]:
                self.counts.damaged += 1
                return
            owner, entries = unpacked(whole)
            if owner == namespace:
                self.entries = entries
            else:
                self.counts.damaged += len(entries)

    def packed(self):
        content = pickle.dumps((self.file.parent.name, self.entries))
        return checksum(content) + content

    def put(self, keys, activations):
        for key, activation in zip(keys, activations.detach(), strict=True):
            if key in self.entries:
                self.counts.duplicates += 1
            else:
                self.entries[key] = activation.clone()
                self.counts.writes += 1
                self.put_since = True
                self.evict()

    def evict(self):
        if self.capacity is not None:
            self.shrink(self.capacity)

    def shrink(self, most):
        while len(self.entries) * self.layout.bytes_per_entry > most:
            del self.entries[next(iter(self.entries))]
            self.counts.evicted += 1

    def get(self, keys):
        if missing := [key for key in keys if key not in self.entries]:
            raise MissingEntries(missing)
        self.use(keys)
        self.counts.reads += len(keys)
        empty = torch.empty((0, *self.layout.shape), dtype=self.layout.torch_dtype)
        return torch.cat([empty, *(self.entries[key][None] for key in keys)])

    def contains(self, keys):
        self.use(keys)
        return [key in self.entries for key in keys]

    def keys(self):
        return iter(list(self.entries))

    def discard(self, keys):
        for key in keys:
            self.entries.pop(key, None)

    def use(self, keys):
        for key in keys:
            if key in self.entries:
                self.entries[key] = self.entries.pop(key)

    def flush(self):
        if self.put_since:
            self.write()
            self.put_since = False

    def write(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_name("beside")
        beside.write_bytes(self.packed())
        beside.replace(self.file)

    def drop(self):
        self.entries.clear()
        self.file.unlink(missing_ok=True)

    def stats(self):
        size = len(self.entries) * self.layout.bytes_per_entry
        counts = self.counts
        return CacheStats(
            len(self.entries), size, counts.writes, counts.duplicates, counts.reads, counts.evicted, counts.damaged
        )


def backend(store):
    class Backend(CacheBackend):
        durable = True

        def open(self, directory, layout, capacity):
            return store(directory, layout, capacity)

    return Backend(None)


class TestRight(CacheBackendContract):
    @pytest.fixture
    def backend(self):
        return backend(RightStore)


def wrong(**members):
    """A backend whose store differs from the right one in these methods."""
    return backend(type("Wrong", (RightStore,), members))


def overwriting(self, keys, activations):
    for key in keys:
        self.entries.pop(key, None)
    RightStore.put(self, keys, activations)


def borrowing(self, keys, activations):
    for key, activation in zip(keys, activations.detach(), strict=True):
        self.entries.setdefault(key, activation)


def live_stats(self):
    self.counts.entries, self.counts.bytes = len(self.entries), len(self.entries) * self.layout.bytes_per_entry
    return self.counts


def made_at_once(self, directory, layout, capacity):
    directory.mkdir(parents=True, exist_ok=True)
    RightStore.__init__(self, directory, layout, capacity)


def skipping(self, keys):
    return RightStore.get(self, [key for key in keys if key in self.entries])


def blaming_all(self, keys):
    if not all(key in self.entries for key in keys):
        raise MissingEntries(keys)
    return RightStore.get(self, keys)


def newest_first(self, most):
    while len(self.entries) * self.layout.bytes_per_entry > most:
        self.entries.popitem()
        self.counts.evicted += 1


def uncounted(self, most):
    before = self.counts.evicted
    RightStore.shrink(self, most)
    self.counts.evicted = before


def keeping_one(self, most):
    RightStore.shrink(self, max(most, self.layout.bytes_per_entry))


def refusing(self, keys, activations):
    if self.capacity is not None and self.capacity < self.layout.bytes_per_entry:
        raise OSError("no room")
    RightStore.put(self, keys, activations)


def discarding_as_evicted(self, keys):
    before = len(self.entries)
    RightStore.discard(self, keys)
    self.counts.evicted += before - len(self.entries)


def banning(self, keys):
    self.banned = {*keys}
    RightStore.discard(self, self.banned)


def without_banned(self, keys, activations):
    allowed = [place for place, key in enumerate(keys) if key not in getattr(self, "banned", ())]
    RightStore.put(self, [keys[place] for place in allowed], activations[allowed])


def in_place(self):
    """Half of the file, and the other half a little later."""
    self.file.parent.mkdir(parents=True, exist_ok=True)
    whole = self.packed()
    with self.file.open("wb") as file:
        for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            os.write(file.fileno(), half)
            time.sleep(0.002)


def reading_any(self, namespace):
    if self.file.exists():
        RightStore.read(self, unpacked(self.file.read_bytes())[0])


def believing(self, namespace):
    with suppress(FileNotFoundError):
        owner, entries = unpacked(self.file.read_bytes())
        if owner == namespace:
            self.entries = entries


def gone_meanwhile(self):
    """The file isn't there for most of the time that its writer takes."""
    self.file.unlink(missing_ok=True)
    time.sleep(0.02)
    RightStore.write(self)


def into_the_first_rows(self, keys, entries):
    """It fills the memory that entries begin with, whatever their strides."""
    found = RightStore.get(self, keys)
    torch.as_strided(entries, entries.shape, found.stride()).copy_(found)


def of_one_thread(self, keys):
    assert threading.current_thread() is self.thread, "another thread's"
    return RightStore.get(self, keys)


def opened_in_a_thread(self, directory, layout, capacity):
    self.thread = threading.current_thread()
    RightStore.__init__(self, directory, layout, capacity)


WRONG = {
    "always fp32": ("test_gives_what_was_put", wrong(get=lambda self, keys: RightStore.get(self, keys).float())),
    "rounded": ("test_gives_what_was_put", wrong(get=lambda self, keys: RightStore.get(self, keys).half().float())),
    "sorted": ("test_rows_are_in_the_keys_order", wrong(get=lambda self, keys: RightStore.get(self, sorted(keys)))),
    "once each": ("test_rows_are_in_the_keys_order", wrong(get=lambda self, keys: RightStore.get(self, list({*keys})))),
    "ignores strides": ("test_read_into_fills_what_get_gives", wrong(read_into=into_the_first_rows)),
    "bound to a thread": (
        "test_calls_may_come_from_any_thread",
        wrong(__init__=opened_in_a_thread, get=of_one_thread),
    ),
    "no empty answer": (
        "test_no_keys_are_no_entries",
        wrong(get=lambda self, keys: torch.stack([self.entries[key] for key in keys])),
    ),
    "one answer": ("test_contains", wrong(contains=lambda self, keys: [all(key in self.entries for key in keys)])),
    "skips the missing": ("test_missing_entries_are_named", wrong(get=skipping)),
    "blames all": ("test_missing_entries_are_named", wrong(get=blaming_all)),
    "overwrites": ("test_a_key_that_is_there_stays", wrong(put=overwriting)),
    "borrows": ("test_entries_are_the_stores_own", wrong(put=borrowing)),
    "keeps the graph": (
        "test_activations_may_be_of_any_kind",
        wrong(get=lambda self, keys: RightStore.get(self, keys).float().requires_grad_()),
    ),
    "no limit": ("test_capacity_is_kept", wrong(evict=lambda self: None)),
    "first in, first out": ("test_the_least_recently_used_goes_first", wrong(use=lambda self, keys: None)),
    "names one twice": (
        "test_keys_are_those_that_are_there",
        wrong(keys=lambda self: iter([*self.entries, *list(self.entries)[:1]])),
    ),
    "names only what is written": (
        "test_keys_are_those_that_are_there",
        wrong(keys=lambda self: iter(unpacked(self.file.read_bytes())[1] if self.file.exists() else ())),
    ),
    "shrinks by the newest": ("test_shrink_evicts_the_least_recently_used", wrong(shrink=newest_first)),
    "shrinks uncounted": ("test_shrink_evicts_the_least_recently_used", wrong(shrink=uncounted)),
    "shrinks to one": ("test_shrink_evicts_the_least_recently_used", wrong(shrink=keeping_one)),
    "never empty": ("test_what_has_no_room_is_evicted", wrong(shrink=keeping_one)),
    "no room is an error": ("test_what_has_no_room_is_evicted", wrong(put=refusing)),
    "discards all": (
        "test_discarded_entries_are_not_lost_ones",
        wrong(discard=lambda self, keys: self.entries.clear()),
    ),
    "discarded is evicted": ("test_discarded_entries_are_not_lost_ones", wrong(discard=discarding_as_evicted)),
    "discarded for ever": ("test_discarded_entries_are_not_lost_ones", wrong(discard=banning, put=without_banned)),
    "leaves files": ("test_drop_empties_the_store", wrong(drop=lambda self: self.entries.clear())),
    "leaves entries": ("test_drop_empties_the_store", wrong(drop=lambda self: None)),
    "prefetch reads": ("test_prefetch_changes_nothing", wrong(prefetch=lambda self, keys: self.get(keys))),
    "live counts": ("test_stats_count", wrong(stats=live_stats)),
    "forgets": ("test_flushed_entries_are_there_again", wrong(flush=lambda self: None)),
    "written at closing": (
        "test_flushed_entries_survive_a_kill",
        wrong(flush=lambda self: None, close=RightStore.flush),
    ),
    "gone meanwhile": ("test_flushed_entries_survive_kills_at_any_instant", wrong(write=gone_meanwhile)),
    "believes its file": ("test_damage_is_found", wrong(read=believing)),
    "written in place": ("test_readers_beside_a_writer", wrong(write=in_place, read=believing)),
    "readers write": ("test_readers_beside_a_writer", wrong(flush=RightStore.write)),
    "of any namespace": ("test_entries_belong_to_their_namespace", wrong(read=reading_any)),
    "writes at once": ("test_opening_writes_nothing", wrong(__init__=made_at_once)),
    "loses at closing": ("test_it_agrees_with_a_dict", wrong(close=lambda self: None)),
}

TRIES = {"readers write": 5}
"""How often to try what is wrong only where processes happen to meet."""


@pytest.mark.parametrize("what", WRONG)
def test_wrong_backends_are_refused(what, refuses, tmp_path):
    """Each wrong backend fails the check that is about it."""
    check, wrong_backend = WRONG[what]
    layout = Layout(tokens=16, d_model=32, dtype="bf16")
    code = getattr(CacheBackendContract, check).__code__
    asked = code.co_varnames[1 : code.co_argcount]
    raised = (MissingEntries, RuntimeError, OSError)
    for left in reversed(range(TRIES.get(what, 1))):
        directory = tmp_path / str(left) / "cache"
        given = {"backend": wrong_backend, "layout": layout, "directory": directory}
        if "store" in asked:
            given["store"] = wrong_backend.open(directory, layout, None)
        with suppress(pytest.fail.Exception) if left else nullcontext():
            refuses(CacheBackendContract(), check, *raised, **{name: given[name] for name in asked})
            return


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(CacheBackendContract, {check for check, _ in WRONG.values()})
