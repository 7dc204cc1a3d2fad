"""What stores of boundaries cost, and what they save: as ratios taken in one process.

    .venv/bin/python tests/benchmarks/cache.py [--results FILE]

1. Stores: 4,096 entries of 128 KB, read in random batches of 16 and written, by each backend, by a plain memory map of
   one file, and by copying the same rows in memory. Before a cold read the page cache is rid of the files, and asked
   whether it is. As in training, a store is told of a batch while the one before it is read.
2. Opening a store of a million small entries, warm and cold, and reading its files through.
3. A step of `blockwise.toml`'s phase 1: the share of reading its boundaries, from keys to fp32.
4. An epoch of cached boundaries from the disk against the same one from the page cache.
5. What a cache saves in racks of 2, 4 and 8 stacks (d_model 256, two blocks, 256 tokens, batches of 16, bf16): the last
   stack's phase with cached boundaries, with the trunk run for each window, and end-to-end training, beside the
   FLOPs that `stackwise plan` counts.
6. A run of `blockwise.toml`: how often a boundary is read, and how many were there when they were asked for.

Ratios within a repeat, medians of alternating repeats. Writes docs/benchmarks/cache.md. Takes half an hour on two
cores, on which nothing else should run, 3 GB of memory and as much disk in the directory for temporary files (TMPDIR),
which must not be in memory. With FILE (JSON) it resumes an interrupted measurement.
"""

import argparse
import ctypes
import json
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve
from torch import Tensor

from stackwise_core.config.load import load
from stackwise_core.engine.boundary.boundary import Boundary, BoundaryCounts
from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.estimates.flops import boundary_flops, step_flops
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import build_implementations, set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheBackend, CacheStats, Layout
from stackwise_core.system.process_state import own_state

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "cache.md"
REPEATS, STORE_REPEATS, EPOCH_REPEATS = 3, 5, 15

ENTRY = Layout(tokens=256, d_model=256, dtype="bf16")
ENTRIES, WRITTEN, COLD_BATCHES, BATCH = 4096, 1024, 64, 16
SMALL = Layout(tokens=1, d_model=8, dtype="bf16")
MANY = 1_000_000

REFERENCE = ("rack.blocks_per_stack=2", "rack.d_model=256", "data.seq_len=256")
DEPTHS = (2, 4, 8)
STEPS = 16
SEQUENCES = STEPS * BATCH
"""Of a window: so many that each time a phase is run it has one whole window."""


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def alternating(ways: Mapping[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """What each way takes, after a first time that doesn't count."""
    rounds = [{name: work() for name, work in ways.items()} for _ in range(repeats + 1)]
    return {name: [each[name] for each in rounds[1:]] for name in ways}


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# Stores


class Stored:
    """Entries in a backend's store, under random keys."""

    def __init__(self, backend: CacheBackend, directory: Path, layout: Layout, entries: int) -> None:
        self._backend, self._layout, self.directory, self.durable = backend, layout, directory, backend.durable
        packed = np.random.default_rng(0).bytes(16 * entries)
        self._keys = [packed[at : at + 16] for at in range(0, len(packed), 16)]
        self._store: ActivationStore | None = None

    def open(self) -> None:
        if self._store is None:
            self._store = self._backend.open(self.directory, self._layout, None)

    def write(self, rows: np.ndarray) -> None:
        """Rows uint8 [n, bytes] in batches of a chunk's size, until they are durable."""
        self.open()
        entries = torch.from_numpy(rows).view(self._layout.torch_dtype).view(-1, *self._layout.shape)
        for at in range(0, len(entries), BATCH):
            self._store.put(self._keys[at : at + BATCH], entries[at : at + BATCH])
        self._store.flush()

    def read(self, batches: np.ndarray) -> None:
        keys = [[self._keys[row] for row in batch] for batch in batches]
        for current, following in zip(keys, [*keys[1:], []], strict=True):
            self._store.prefetch(following)
            self._store.get(current)

    def close(self) -> None:
        if self.durable and self._store is not None:
            self._store.close()
            self._store = None

    def drop(self) -> None:
        self._store.drop()


class Mapped:
    """The same entries in one file, under a plain memory map."""

    durable = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "entries"
        self._map: np.memmap | None = None
        self._answer = np.empty((BATCH, ENTRY.bytes_per_entry), np.uint8)

    def open(self) -> None:
        self._map = np.memmap(self._file, np.uint8, "r").reshape(-1, ENTRY.bytes_per_entry)

    def write(self, rows: np.ndarray) -> None:
        self.directory.mkdir()
        mapped = np.memmap(self._file, np.uint8, "w+", shape=rows.shape)
        mapped[:] = rows
        mapped.flush()

    def read(self, batches: np.ndarray) -> None:
        copy_rows(self._map, batches, self._answer)

    def close(self) -> None:
        self._map = None

    def drop(self) -> None:
        shutil.rmtree(self.directory)


class Copied:
    """The same entries in an array in memory."""

    durable = False

    def __init__(self) -> None:
        self._rows: np.ndarray | None = None
        self._answer = np.empty((BATCH, ENTRY.bytes_per_entry), np.uint8)

    def write(self, rows: np.ndarray) -> None:
        self._rows = rows.copy()

    def read(self, batches: np.ndarray) -> None:
        copy_rows(self._rows, batches, self._answer)

    def drop(self) -> None:
        self._rows = None


def copy_rows(rows: np.ndarray, batches: np.ndarray, into: np.ndarray) -> None:
    for batch in batches:
        for place, row in enumerate(batch):
            into[place] = rows[row]


def drop_pages(directory: Path) -> None:
    """Rid the page cache of all files in a directory, but for what a store that is open has mapped."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stays = sum(map(resident_bytes, files)) / sum(path.stat().st_size for path in files)
    if stays > 0.01:
        raise SystemExit(f"{stays:.0%} of {directory} stays in memory; set TMPDIR to a directory on disk")


def resident_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        content = np.frombuffer(mapped, np.uint8)
        address, length = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(mapped))
        if ctypes.CDLL(None, use_errno=True).mincore(address, length, ctypes.c_void_p(pages.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        del content, address
    return mmap.PAGESIZE * int((pages & 1).sum())


def backend(name: str) -> CacheBackend:
    config, registry = load(ROOT / "tests/benchmarks/blockwise.toml", overrides=[f"cache_backend.use={name}"])
    made = build_implementations(config, registry, torch.device("cpu")).cache
    assert made is not None
    return made


def measure_stores(directory: Path) -> dict[str, Any]:
    """Throughput in bytes a second, by way and repeat, and bytes on disk an entry."""
    rng = np.random.default_rng(1)
    rows = rng.integers(256, size=(ENTRIES, ENTRY.bytes_per_entry), dtype=np.uint8)

    def all_ways(where: Path) -> dict[str, Any]:
        stored = {name: Stored(backend(name), where / name, ENTRY, ENTRIES) for name in ("memory", "disk", "lmdb")}
        return {**stored, "memory map": Mapped(where / "map"), "memcpy": Copied()}

    def written(name: str) -> float:
        beside = directory / "written"
        beside.mkdir(exist_ok=True)
        way = all_ways(beside)[name]
        seconds = seconds_of(partial(way.write, rows[:WRITTEN]))
        way.drop()
        return seconds

    ways = all_ways(directory)
    writing = alternating({name: partial(written, name) for name in ways}, STORE_REPEATS)
    on_disk = {}
    for name, way in ways.items():
        way.write(rows)
        if way.durable:
            way.close()
            on_disk[name] = sum(512 * path.stat().st_blocks for path in way.directory.rglob("*")) / ENTRIES

    def batches(count: int) -> np.ndarray:
        return rng.permutation(ENTRIES)[: count * BATCH].reshape(-1, BATCH)

    def cold(name: str) -> float:
        way = ways[name]
        way.close()
        drop_pages(way.directory)
        way.open()
        drop_pages(way.directory)  # of what opening it has read
        return seconds_of(partial(way.read, batches(COLD_BATCHES)))

    for way in ways.values():
        if way.durable:
            way.open()
    reading = alternating(
        {name: lambda way=way: seconds_of(partial(way.read, batches(ENTRIES // BATCH))) for name, way in ways.items()},
        STORE_REPEATS,
    )
    from_disk = alternating({name: partial(cold, name) for name in on_disk})
    for way in ways.values():
        way.drop()
    size = ENTRY.bytes_per_entry

    def speeds(found: Mapping[str, Sequence[float]], entries: int) -> dict[str, list[float]]:
        return {name: [entries * size / seconds for seconds in each] for name, each in found.items()}

    return {
        "write": speeds(writing, WRITTEN),
        "warm": speeds(reading, ENTRIES),
        "cold": speeds(from_disk, COLD_BATCHES * BATCH),
        "bytes": {name: found / size for name, found in on_disk.items()},
    }


def measure_opening(directory: Path) -> dict[str, Any]:
    """Seconds to open a million entries, by backend; those to read all its files, warm."""
    rows = np.random.default_rng(2).integers(256, size=(MANY, SMALL.bytes_per_entry), dtype=np.uint8)
    found: dict[str, Any] = {}
    for name in ("disk", "lmdb"):
        stored = Stored(backend(name), directory / f"many {name}", SMALL, MANY)
        stored.write(rows)
        stored.close()

        def opened(stored: Stored = stored) -> float:
            stored.close()
            seconds = seconds_of(stored.open)
            assert stored._store.stats().entries == MANY
            return seconds

        def opened_cold(stored: Stored = stored, opened: Callable[[], float] = opened) -> float:
            stored.close()
            drop_pages(stored.directory)
            return opened()

        def files_read(stored: Stored = stored) -> float:
            def read() -> None:
                for path in stored.directory.iterdir():
                    path.read_bytes()

            read()
            return seconds_of(read)

        found[name] = alternating({"warm": opened, "files": files_read, "cold": opened_cold})
        stored.drop()
    return found


# Training


def engine_for(directory: Path, *overrides: str, cached: bool = True) -> Engine:
    common = [f"run.directory={directory}", f"data.tokens_directory={directory}/tokens", "run.name=bench"]
    config, registry = load(ROOT / "tests/benchmarks/blockwise.toml", overrides=[*common, *overrides])
    # A TOML can't take a table out again, so the cache goes here.
    setup = set_up(config if cached else evolve(config, cache_backend=None), registry)
    return Engine(setup, make_plan(setup), registry, lambda event: None)


def alone(*overrides: str) -> tuple[str, ...]:
    """Any stack may be the first to be placed, and all have equal budgets."""
    return ("trainer_mode.shares=[]", "trainer_mode.start=random", *overrides)


def opened(engine: Engine, phase: int) -> Boundary | None:
    """Place a phase's stacks, and open the boundary that it starts from."""
    planned = engine.plan.phases[phase]
    engine.placement.place(planned.phase, streams=planned.streams)
    return engine.boundaries.open(planned)


def filled(engine: Engine, phase: int, boundary: Boundary) -> Boundary:
    """Run a phase once, so that all its boundaries are in the store's files."""
    run_again(engine, phase, boundary)
    boundary._store.flush()
    return boundary


def run_again(engine: Engine, phase: int, boundary: Boundary | None) -> float:
    """Run a phase from its beginning, and return the seconds that it took."""
    return engine.phase(engine.plan.phases[phase], boundary, lambda event: None).run().seconds


@contextmanager
def timed(of: object, method: str) -> Iterator[list[float]]:
    """Gather the seconds of each call while this lasts."""
    found: list[float] = []
    original = getattr(of, method)

    def measured(*arguments: object) -> object:
        began = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            found.append(time.perf_counter() - began)

    setattr(of, method, measured)
    try:
        yield found
    finally:
        delattr(of, method)


def measure_share(directory: Path) -> dict[str, float]:
    """Of the default run's step: what reading its boundary and announcing the next one take."""
    engine, rounds = engine_for(directory, *alone("training.steps_per_stack=60")), []
    boundary = filled(engine, 1, opened(engine, 1))
    for _ in range(STORE_REPEATS):
        with (
            timed(boundary, "read") as read,
            timed(boundary, "prefetch") as announced,
            timed(boundary._store, "get") as got,
        ):
            seconds = run_again(engine, 1, boundary)
        rounds.append({"read": sum(read), "get": sum(got), "prefetch": sum(announced), "step": seconds})
    found = {name: median_ratio([e[name] for e in rounds], [e["step"] for e in rounds]) for name in rounds[0]}
    return {**found, "step": statistics.median(each["step"] / engine.plan.phases[1].steps for each in rounds)}


def measure_epochs(directory: Path) -> dict[str, list[float]]:
    """Seconds of epochs, all of whose boundaries are in the store: the default's, and short ones at larger shapes."""
    found = {}
    shapes = {
        "blockwise.toml": ("training.epochs_per_stack=1",),
        # Seconds each: the machine's own speed differs by some per cent from one minute to the next.
        "d_model 256": (*REFERENCE, f"training.steps_per_stack={STEPS}", f"training.window={SEQUENCES}"),
    }
    for name, shape in shapes.items():
        engine = engine_for(directory, *alone(*shape))
        boundary = filled(engine, 1, opened(engine, 1))

        def warm(engine: Engine = engine, boundary: Boundary = boundary) -> float:
            return run_again(engine, 1, boundary)

        def cold(engine: Engine = engine, boundary: Boundary = boundary) -> float:
            drop_pages(engine.files.cache)
            return run_again(engine, 1, boundary)

        epochs = alternating({"warm": warm, "cold": cold}, EPOCH_REPEATS)
        found |= {f"{name}, {state}": seconds for state, seconds in epochs.items()}
        boundary.drop()
    return found


class Tensors:
    """Stands for a boundary that is in memory as fp32 tensors already, a batch each."""

    counts, losses = BoundaryCounts(), CacheStats()

    def __init__(self, boundary: Boundary) -> None:
        self._boundary = boundary
        self._batches: dict[bytes, Tensor] = {}

    def fill_window(self, window: object, number: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def prefetch(self, draws: Draws) -> None:
        """Nothing is to be fetched."""

    def read(self, draws: Draws, number: int) -> Tensor:
        name = draws.samples.tobytes()
        if name not in self._batches:
            self._batches[name] = self._boundary.read(draws, number)
        return self._batches[name]

    def drop_below(self) -> None:
        """There is nothing below."""

    def rest(self) -> None:
        """There is nothing to write."""


def measure_saving(directory: Path, stacks: int) -> dict[str, Any]:
    """Seconds of the last stack's phase in each way, and the FLOPs of each over those of the cached one."""
    shape = (*REFERENCE, f"rack.stacks={stacks}", f"training.steps_per_stack={STEPS}", f"training.window={SEQUENCES}")
    engines = {
        "cached": engine_for(directory, *alone(*shape)),
        "in memory": engine_for(directory, *alone(*shape, "training.residency=memory"), cached=False),
        "streamed": engine_for(directory, *alone(*shape, "training.residency=stream"), cached=False),
        "end to end": engine_for(
            directory, *shape, "trainer_mode={ use = 'end_to_end' }", f"training.steps_per_stack={STEPS // stacks}"
        ),
    }
    boundaries = {name: opened(engine, -1) for name, engine in engines.items()}
    cached = filled(engines["cached"], -1, boundaries["cached"])
    ways = {name: (engine, boundaries[name]) for name, engine in engines.items()}
    ways["tensors"] = engines["cached"], Tensors(cached)
    seconds = alternating({name: lambda way=way: run_again(way[0], -1, way[1]) for name, way in ways.items()})
    assert {engine.plan.phases[-1].steps for engine in engines.values()} == {STEPS}
    cached.drop()

    tokens, flops = SEQUENCES * ENTRY.tokens, {}
    for name, engine in engines.items():
        phases = [planned.phase for planned in engine.plan.phases]
        flops[name] = step_flops(phases[-1], {}, tokens, engine.setup)
        if name != "cached":
            flops[name] += boundary_flops(phases[-1], phases[:-1], {}, engine.setup, cached=False)
    return {"seconds": seconds, "allowed": {name: each / flops["cached"] for name, each in flops.items()}}


def measure_run(directory: Path) -> list[dict[str, Any]]:
    """Return the counts of each phase, from the metrics of a run of `blockwise.toml`."""
    engine = engine_for(directory)
    engine.run()
    lines = [json.loads(line) for line in engine.files.metrics.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "phase" and line["boundaries_wanted"]]


# The page


def gigabytes(speeds: Sequence[float]) -> str:
    return f"{statistics.median(speeds) / 1e9:.2f}"


def ratio_line(ones: Sequence[float], others: Sequence[float]) -> str:
    low, median, high = statistics.quantiles((one / other for one, other in zip(ones, others, strict=True)), n=4)
    return f"{median:.3f} (the middle half: {low:.3f} to {high:.3f})"


def store_lines(found: Mapping[str, Any]) -> list[str]:
    titles = {"memory": "`memory`", "disk": "`disk`", "lmdb": "`lmdb`", "memory map": "plain memory map"}
    lines = [
        "| | read, warm | over memcpy | read, cold | over memory map | written | over memcpy | bytes on disk |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in found["warm"]:
        cold, size = "-", "-"
        over_map = "-"
        if name in found["cold"]:
            cold, size = gigabytes(found["cold"][name]), f"{found['bytes'][name]:.3f}"
            over_map = f"{median_ratio(found['cold'][name], found['cold']['memory map']):.2f}"
        warm, write = (
            f"{gigabytes(found[kind][name])} | {median_ratio(found[kind][name], found[kind]['memcpy']):.2f}"
            for kind in ("warm", "write")
        )
        lines.append(f"| {titles.get(name, name)} | {warm} | {cold} | {over_map} | {write} | {size} |")
    return lines


def opening_lines(found: Mapping[str, Any]) -> list[str]:
    lines = ["| | warm | over reading the files | cold |", "| --- | ---: | ---: | ---: |"]
    for name, each in found.items():
        warm, cold = (statistics.median(each[state]) for state in ("warm", "cold"))
        lines.append(f"| `{name}` | {warm:.2f} s | {median_ratio(each['warm'], each['files']):.1f} | {cold:.2f} s |")
    return lines


def saving_lines(results: Mapping[str, Any]) -> list[str]:
    titles = {
        "end to end": "end-to-end training",
        "in memory": "trunk in memory, run for each window",
        "streamed": "trunk streamed, run for each window",
    }
    lines = [
        "| stacks | time of | over time of | ratio | FLOPs allow | ratio over that |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for stacks in DEPTHS:
        found = results[f"saving, {stacks} stacks"]
        seconds = found["seconds"]
        for name, title in titles.items():
            ratio, allowed = median_ratio(seconds[name], seconds["cached"]), found["allowed"][name]
            lines.append(f"| {stacks} | {title} | cached | {ratio:.2f} | {allowed:.2f} | {ratio / allowed:.2f} |")
        inputs = median_ratio(seconds["cached"], seconds["tensors"])
        lines.append(f"| {stacks} | cached | its input a tensor in memory | {inputs:.3f} | 1 | |")
    return lines


def run_lines(phases: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| phase | computed | read | reads an entry | asked for | hits | equal to another |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for phase in phases:
        wanted, found, repeated, computed, read = (
            phase[f"boundaries_{kind}"] for kind in ("wanted", "found", "repeated", "computed", "read")
        )
        lines.append(
            f"| {phase['name']} | {computed} | {read} | {read / computed:.2f} | {wanted} | {found / wanted:.1%} | "
            f"{repeated / wanted:.2%} |"
        )
    return lines


def write(results: Mapping[str, Any]) -> None:
    share, epochs = results["share"], results["epochs"]
    ratios = {
        shape: ratio_line(epochs[f"{shape}, cold"], epochs[f"{shape}, warm"])
        for shape in ("blockwise.toml", "d_model 256")
    }
    lines = [
        "# What the cache costs and saves",
        "",
        f"Medians of at least {REPEATS} alternating repeats in one process, on a CPU with two threads. The command:",
        "`.venv/bin/python tests/benchmarks/cache.py`.",
        "",
        "## Stores",
        "",
        f"GB/s of one thread; {ENTRIES} entries of 128 KB (256 tokens, d_model 256, bf16) in random batches of",
        f"{BATCH}. Every backend but `memory` compares a checksum of what it reads; map and memcpy don't. What is",
        "written is durable when the time is up, except in memory. Cold: the page cache holds less than 1 % of the",
        "files, and `disk` is told of a batch while it reads the one before, as in training. The last column is what",
        "an activation takes on disk over its payload.",
        "",
        *store_lines(results["stores"]),
        "",
        f"Opening a store of {MANY:,} small entries:",
        "",
        *opening_lines(results["opening"]),
        "",
        "`disk` reads each shard's header, keys and checksums; `lmdb` walks its whole tree to be sure of it.",
        "",
        "## Reading, as a share of training",
        "",
        f"A step of `blockwise.toml`'s phase 1 takes {1e3 * share['step']:.1f} ms. {share['read']:.2%} of it is",
        "reading its boundary from the page cache, from keys to fp32; the store's part of that, checksums included, is",
        f"{share['get']:.2%} of the step. Saying which batch comes next takes another {share['prefetch']:.2%}.",
        "",
        "Time of an epoch whose boundaries are all on disk and none in the page cache, over that of the same epoch",
        f"with them there, of {EPOCH_REPEATS} pairs:",
        "",
        f"- an epoch of `blockwise.toml`: {ratios['blockwise.toml']};",
        f"- {SEQUENCES} sequences at the shapes below: {ratios['d_model 256']}.",
        "",
        "## What it saves",
        "",
        "Steps of the last stack's phase; d_model 256, two blocks a stack, 256 tokens, batches of 16, bf16, windows of",
        f"{SEQUENCES}. The FLOPs are those that `stackwise plan` counts: blocks, attention and head. They leave out",
        "the optimizer, the norms, and whatever else takes time and no FLOPs. An input that is a tensor in memory is",
        "what a cache would be that costs nothing.",
        "",
        *saving_lines(results),
        "",
        "A trunk that is run for each window makes one forward pass that keeps nothing for a backward one. That takes",
        "less time than its FLOPs say, beside a training step's, and how much less depends on what else the machine",
        "does.",
        "",
        "## Reads an entry",
        "",
        "From the metrics of a run of `blockwise.toml`. Windows ask for whole chunks; a hit was in the store already.",
        "",
        *run_lines(results["run"]),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path)
    file = parser.parse_args().results
    results = json.loads(file.read_text()) if file is not None and file.exists() else {}
    parts: dict[str, Callable[[Path], object]] = {
        "stores": measure_stores,
        "opening": measure_opening,
        "share": measure_share,
        "epochs": measure_epochs,
        **{f"saving, {stacks} stacks": partial(measure_saving, stacks=stacks) for stacks in DEPTHS},
        "run": measure_run,
    }
    for name, measure in parts.items():
        if name in results:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory, own_state():
            results[name] = measure(Path(directory))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if file is not None:
            file.write_text(json.dumps(results, indent=2))
    write(results)


if __name__ == "__main__":
    main()
