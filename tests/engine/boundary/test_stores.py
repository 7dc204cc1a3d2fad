"""A run's stores over its phases: losses, kept boundaries, open files, and owners."""

import errno
import os
import shutil
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from stackwise_cache import shard
from stackwise_cache.disk import Disk
from stackwise_cache.options import DiskOptions
from stackwise_core.engine.boundary.boundary import Boundary
from stackwise_core.engine.events.events import Event, PhaseDone, StepDone
from stackwise_core.engine.loop.run_record import RunRecord
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.testing.damage import flip
from tests.tiny import Ran, run_tiny, telling

pytestmark = pytest.mark.slow

ENTRY = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
DISK = {"use": "disk", "shard_entries": 8}
SHORT = {"training.epochs_per_stack": 2, "training.batch_size": 16, "evaluation": {"draws": 1, "sequences": 4}}


@pytest.fixture(scope="module", autouse=True)
def _several_chunks():
    """Chunks of 16 sequences, so that a hundred of them make seven."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackwise_core.engine.phases.setup.CHUNK_TOKENS", dict.fromkeys(("cpu", "cuda"), 512))
        yield


@pytest.mark.parametrize(("keep", "masks"), [("stack", 1), ("rack", 2)])
def test_a_small_capacity_costs_no_more_than_no_cache(tmp_path, keep, masks):
    """In an epoch each boundary is computed once at most, though those that were there drive each other out."""
    cache = DISK | {"capacity": 50 * ENTRY, "keep": keep}
    changes = SHORT | {"training.masks_per_sample": masks, "training.epochs_per_stack": 4}
    ran = run_tiny(tmp_path / "small", changes | {"cache_backend": cache})
    for phase in ran.result.phases[1:]:
        assert phase.boundaries_wanted == 4 * len(ran.setup.corpus.train)
        assert 0 < phase.boundaries_computed <= phase.boundaries_wanted
        # Whole chunks are computed, of which some may be there.
        most = phase.boundaries_wanted - phase.boundaries_computed + 4 * 15
        assert phase.boundaries_wanted - phase.boundaries_computed <= phase.boundaries_found <= most
    assert ran.losses == run_tiny(tmp_path / "whole", changes | {"cache_backend": DISK}).losses


def test_what_a_window_finds_and_loses_again_is_not_found(tmp_path):
    """A store for less than half of the epoch, visited in turn: what comes drives out what was there, each time."""
    cache = DISK | {"capacity": 50 * ENTRY}
    ran = run_tiny(tmp_path, SHORT | {"training.masks_per_sample": 1, "cache_backend": cache})
    for phase in ran.result.phases[1:]:
        assert phase.boundaries_computed == phase.boundaries_wanted == 200
        assert phase.boundaries_found < 16  # of a chunk that was there in part


def test_a_chunk_is_mended_once_a_window(tmp_path):
    """However many of its entries are damaged, and found to be so one after the other."""

    def harm(event: Event, directory: Path) -> None:
        if isinstance(event, StepDone) and (event.planned.phase.name, event.step) == ("stack 1", 1):
            flip(np.random.default_rng(0), sorted(directory.glob("cache/*/*.safetensors"))[:3])

    again, calls = Boundary._again, list[int]()

    def counted(boundary, chunk, number):
        calls.append(chunk)
        return again(boundary, chunk, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Boundary, "_again", counted)
        changes = SHORT | {"training.masks_per_sample": 1, "training.epochs_per_stack": 1, "rack.stacks": 2}
        run_tiny(tmp_path, changes | {"cache_backend": DISK}, telling(harm))
    assert calls
    assert len(calls) == len(set(calls))


def test_a_lost_activation_counts_once(tmp_path):
    """In the phase that finds it, and in none of those that follow."""

    def harm(event: Event, directory: Path) -> None:
        if isinstance(event, PhaseDone) and event.planned.phase.name == "stack 1":
            for shard in directory.glob("cache/*/*.safetensors"):
                flip(np.random.default_rng(0), [shard])

    ran = run_tiny(tmp_path, SHORT | {"rack.stacks": 5, "cache_backend": DISK}, telling(harm))
    _, one, two, *others = [phase.boundaries_damaged for phase in ran.result.phases]
    assert (one, others) == (0, [0, 0])
    assert two > 10


def test_all_that_makes_room_is_counted(tmp_path):
    """Also what goes from boundaries of earlier phases: all that was computed is there in the end, or was evicted."""
    cache = DISK | {"keep": "rack", "capacity": 300 * ENTRY}
    ran = run_tiny(tmp_path, SHORT | {"rack.stacks": 5, "training.masks_per_sample": 1, "cache_backend": cache})
    left = sum(store_of(path).stats().entries for path in (ran.directory / "cache").iterdir() if path.is_dir())
    evicted = sum(phase.boundaries_evicted for phase in ran.result.phases)
    computed = sum(phase.boundaries_computed for phase in ran.result.phases)
    assert evicted > 50
    assert left + evicted == computed


def store_of(directory: Path):
    return Disk(DiskOptions()).open(directory, Layout(tokens=32, d_model=32, dtype="bf16"), None)


def open_stores(directory: Path) -> set[str]:
    """The stores of which this process has files open."""
    files = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    targets = [Path(os.readlink(file)) for file in files if file.is_symlink()]
    return {path.parent.name for path in targets if path.parent.parent == directory.absolute() / "cache"}


@pytest.mark.parametrize("steps", [None, 3])
def test_boundaries_that_are_kept_are_whole_on_disk_and_hold_nothing(tmp_path, monkeypatch, steps):
    """Before the phase counts as done, so that a kill takes nothing of it; depth costs neither buffers nor open files.

    Also where a phase ends before the boundary below has served its turn.
    """
    on_disk, held, write, engines = [], [], RunRecord.write_phase, []

    def look(record: RunRecord, planned, phases, *others) -> None:
        run = record.directory.path
        stores = [path for path in run.glob("cache/*") if path.is_dir()]
        on_disk.append(sum(store_of(path).stats().entries for path in stores))
        buffers = sum(store._buffer is not None for store in engines[-1].stores._open.values())
        held.append((len(open_stores(run)), buffers))
        write(record, planned, phases, *others)

    monkeypatch.setattr(RunRecord, "write_phase", look)
    changes = {"rack.stacks": 5, "training.window": 32, "cache_backend": DISK | {"keep": "rack"}}
    budget = {} if steps is None else {"training.steps_per_stack": steps}
    ran = run_tiny(tmp_path, SHORT | changes | budget, lambda ran: engines.append(ran.engine))
    new = [phase.boundaries_computed - phase.boundaries_repeated for phase in ran.result.phases]
    assert on_disk == list(accumulate(new))
    assert on_disk[1] > 100 if steps is None else 0 < on_disk[1] <= 64
    assert held == [(0, 0)] * 5


def test_what_is_lost_at_the_end_of_a_phase_is_its_own(tmp_path, monkeypatch):
    """What waited in memory, and has no room on the disk when the phase is over."""

    def full(path: Path, write: Callable[[Path], None]) -> None:
        raise OSError(errno.ENOSPC, "no more")

    monkeypatch.setattr(shard, "publish", full)
    ran = run_tiny(tmp_path, SHORT | {"cache_backend": DISK | {"shard_entries": 1000}})
    for phase in ran.result.phases[1:]:
        assert phase.boundaries_evicted == phase.boundaries_computed - phase.boundaries_repeated > 100


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_no_more_boundaries_are_there_than_are_to_be_kept(tmp_path, keep):
    """Nor while the next one is made: the oldest goes first. One alone needs the one below until it is whole."""
    most = 0

    def count(event: Event, directory: Path) -> None:
        nonlocal most
        most = max(most, sum(path.is_dir() for path in directory.glob("cache/*")))

    cache = DISK | {"keep": "rack", "keep_time_steps": keep} if keep > 1 else DISK
    run_tiny(tmp_path, SHORT | {"rack.stacks": 6, "cache_backend": cache}, telling(count))
    assert most == max(2, keep)


def test_a_run_with_less_room_leaves_another_run_s_boundaries(tmp_path, monkeypatch):
    """In a shared directory a capacity is for the run's own; it reads the other's, and adds nothing beyond it."""
    shared = DISK | {"directory": str(tmp_path / "shared")}
    first = run_tiny(tmp_path / "first", SHORT | {"cache_backend": shared | {"keep": "rack"}})
    left = {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    small = shared | {"capacity": 20 * ENTRY}
    second = run_tiny(tmp_path / "second", SHORT | {"cache_backend": small})
    assert [phase.boundaries_computed for phase in second.result.phases] == [0, 0, 0]

    def longer(directory: str, cache: dict[str, object]) -> Ran:
        """Of the same first stack, with more draws above it."""
        budget = {"training.masks_per_sample": 4, "training.epochs_per_stack": 4, "trainer_mode.shares": [1, 2.5, 2.5]}
        return run_tiny(tmp_path / directory, SHORT | budget | {"cache_backend": cache})

    third = longer("third", small)
    assert third.result.phases[1].boundaries_found >= 200
    assert {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()} == left
    assert second.losses == first.losses
    monkeypatch.setattr(Boundary, "_again", None)  # what isn't kept is held, a window at a time
    fourth = longer("fourth", shared)
    added = {path for path in (tmp_path / "shared").rglob("*") if path.is_file()} - set(left)
    assert len(added) > 10
    assert {path: path.read_bytes() for path in left} == left
    assert third.losses == fourth.losses == longer("alone", DISK).losses


def test_a_run_without_room_on_the_disk_leaves_another_run_s_boundaries(tmp_path, monkeypatch):
    """It holds its own itself, rather than make room at the other's cost."""
    shared = DISK | {"directory": str(tmp_path / "shared")}
    run_tiny(tmp_path / "first", SHORT | {"cache_backend": shared | {"keep": "rack"}})
    left = {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    usage = shutil.disk_usage(tmp_path)

    def fill_up(ran: Ran) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))

    more = SHORT | {"training.masks_per_sample": 3, "training.epochs_per_stack": 3, "trainer_mode.shares": [2, 3, 3]}
    second = run_tiny(tmp_path / "second", more | {"cache_backend": shared}, fill_up)
    assert second.result.phases[1].boundaries_found > 0
    assert {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()} == left


def test_planned_passes_of_boundaries_are_those_that_happen(tmp_path, monkeypatch):
    """Where a stack's budget is larger than that of the one below, the rest of its draws pass the whole trunk."""
    passes: dict[int, int] = {}
    take = Boundary._take_from_below

    def counted(boundary, parts, entries):
        take(boundary, parts, entries)
        depth = len(boundary.trunk)
        passes[depth] = passes.get(depth, 0) + sum(len(part.keys) * (depth - part.behind) for part in parts)

    monkeypatch.setattr(Boundary, "_take_from_below", counted)
    changes = {"trainer_mode.shares": [1, 2, 6, 6], "rack.stacks": 4, "training.masks_per_sample": 4}
    ran = run_tiny(tmp_path, SHORT | changes | {"training.epochs_per_stack": 1})
    a_stack = ran.setup.spec.stack_flops(0) * ran.setup.spec.seq_len
    assert {len(each.phase.frozen_prefix): each.boundary.cached / a_stack for each in ran.plan.phases[1:]} == passes
