"""``stackwise cache``: the boundaries that a run keeps on disk, listed, measured, dropped."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen
from rich.console import Console

from stackwise_core.cli.arguments import Run, plugin_option, refuse_other_than_run
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.pulse import working
from stackwise_core.cli.quantities import count
from stackwise_core.cli.tables import print_table
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.cache_backend import (
    ActivationStore,
    CacheBackend,
    CacheStats,
    Format,
)
from stackwise_core.options import ByteSize
from stackwise_core.registry.nearest import nearest
from stackwise_core.run_files import kept
from stackwise_core.run_files.stored_boundaries import StoredBoundary, drop_record, is_namespace, read_records

if TYPE_CHECKING:
    from stackwise_core.engine.boundary.activation_statistics import ActivationStatistics, Measured

SHORTEST_NAME = 8
"""Letters of a namespace that a table shows, if no other begins with them."""
ALL_COLUMNS = 100
"""Columns of a terminal that all measures fit into."""


@frozen
class Kept:
    """The stores in the directory of a run's boundaries."""

    run: Path
    directory: Path
    is_shared: bool
    """Whether other runs' boundaries may be there too."""
    backend: CacheBackend
    boundaries: list[StoredBoundary]
    unknown: list[str]
    """Directories that have no record."""

    @classmethod
    def by(cls, run: Path, plugins: Sequence[str]) -> Kept:
        """Return the boundaries that a run keeps.

        Raises:
            UsageError: it is no run, or keeps nothing on disk.
            StackwiseError: a record is damaged, or the backend can't be had.
        """
        refuse_other_than_run(run)

        from stackwise_core.config.load import load_run

        config, registry = load_run(run, plugins=plugins, hooks=("cache_backend",))
        choice = config.cache_backend
        how = 'use = "disk" with keep = "rack" does.'
        if choice is None:
            raise UsageError(f"{run} has no [cache_backend], so it keeps no boundaries; {how}")
        # Where activations are computed doesn't matter to a store that is only read.
        backend = registry.build(registry.resolve("cache_backend", choice.use), choice.options)
        if not backend.durable:
            raise UsageError(f'{run}: cache_backend.use = "{choice.use}" keeps nothing on disk; {how}')
        shared = choice.options.directory
        directory = run / "cache" if shared is None else Path(shared)
        boundaries = read_records(directory)
        there = directory.iterdir() if directory.is_dir() else ()
        folders = {path.name for path in there if is_namespace(path.name) and path.is_dir() and not path.is_symlink()}
        unknown = sorted(folders - {each.namespace for each in boundaries})
        return cls(run, directory, shared is not None, backend, boundaries, unknown)

    @property
    def namespaces(self) -> list[str]:
        """Namespaces of all stores that are there, in the order of the tables."""
        return [*(each.namespace for each in self.boundaries), *self.unknown]

    @property
    def own(self) -> list[str]:
        """Namespaces that the run itself keeps."""
        if not self.is_shared:
            return self.namespaces
        own = {self.run.resolve()}
        moved_from = kept.Kept.of(self.run).written_in
        if moved_from is not None and not moved_from.exists():
            own.add(moved_from)
        return [each.namespace for each in self.boundaries if Path(each.run).resolve() in own]

    def named(self, prefixes: Sequence[str]) -> list[str]:
        """List the namespaces that begin with one of the prefixes, in the order of the tables.

        Raises:
            UsageError: none does, or more than one.
        """
        chosen = set()
        for prefix in prefixes:
            found = [each for each in self.namespaces if each.startswith(prefix)]
            if len(found) > 1:
                raise UsageError(
                    f"{prefix!r} is the beginning of {len(found)} names: {', '.join(map(self.short, found))}."
                )
            if not found:
                near = nearest(prefix, (each[: max(len(prefix), SHORTEST_NAME)] for each in self.namespaces))
                guess = f" Did you mean {near}?" if near else ""
                raise UsageError(f"no store in {self.directory} has a name that begins with {prefix!r}.{guess}")
            chosen.update(found)
        return [each for each in self.namespaces if each in chosen]

    def short(self, namespace: str) -> str:
        """Return as much of a name as tells it from the others."""
        others = [each for each in self.namespaces if each != namespace]
        length = SHORTEST_NAME
        while length < len(namespace) and any(each.startswith(namespace[:length]) for each in others):
            length += 1
        return namespace[:length]

    def place(self, namespace: str) -> str:
        """Return where in the rack the boundary is."""
        trunk = next((each.trunk for each in self.boundaries if each.namespace == namespace), None)
        return "unknown" if trunk is None else above(trunk)

    def open(self, boundary: StoredBoundary) -> ActivationStore:
        """Open a boundary's store, which is only read or dropped."""
        return self.backend.open(self.directory / boundary.namespace, boundary.layout, None)

    def say_how_to_keep(self) -> None:
        """Explain why no boundary is kept."""
        options = self.backend.options
        if self.is_shared and self.namespaces:
            why = f"None of the {len(self.namespaces)} stores there is of this run; name one to have it all the same."
        elif options.keep == "stack":
            why = 'cache_backend.keep = "stack" deletes each when the next is made; keep = "rack" keeps them all.'
        else:
            why = "The run has made none, or they were dropped."
        click.echo(f"{self.run} has no boundaries in {self.directory}. {why}")


run_argument = click.argument("run", metavar="RUN", type=Run())
prefixes_argument = click.argument("prefixes", metavar="[NAMESPACE-PREFIX]...", nargs=-1)


@click.group(short_help="List, measure or drop the boundaries of a run.")
def cache() -> None:
    """List, measure or drop the boundaries that a run keeps on disk.

    A run leaves them all with cache_backend.keep = "rack".
    """


@cache.command("list", short_help="List the stores, with their sizes.")
@run_argument
@plugin_option
@json_option()
def list_stores(run: Path, plugins: Sequence[str], as_json: bool) -> None:
    """List the stores of the boundaries of the run RUN.

    Where runs share a directory, all of its stores are listed. A directory without a record is "unknown".
    """
    kept = Kept.by(run, plugins)
    stats: dict[str, CacheStats] = {}
    with working(Console(stderr=True), "opening stores") as tell:
        for place, boundary in enumerate(kept.boundaries):
            tell(f"{place} of {len(kept.boundaries)}")
            store = kept.open(boundary)
            stats[boundary.namespace] = store.stats()
            store.close()
        sizes = {
            name: stats[name].bytes if name in stats else bytes_in(kept.directory / name) for name in kept.namespaces
        }
    if as_json:
        stores = [
            {
                **asdict(each),
                "entries": stats[each.namespace].entries,
                "bytes": sizes[each.namespace],
                "damaged": stats[each.namespace].damaged,
            }
            for each in kept.boundaries
        ]
        unknown = [{"namespace": name, "bytes": sizes[name]} for name in kept.unknown]
        result = {"run": str(run), "directory": str(kept.directory), "stores": stores, "unknown": unknown}
        print_json({**result, "bytes": sum(sizes.values())})
        return
    if not kept.namespaces:
        kept.say_how_to_keep()
        return
    print_stores(Console(), kept, stats, sizes)
    entries = sum(each.entries for each in stats.values())
    total = f"{stores_text(len(sizes))}, {entries} entries, {ByteSize(sum(sizes.values()))}"
    click.echo(f"\n{kept.directory}: {total}.")
    if damaged := sum(each.damaged for each in stats.values()):
        click.echo(f"damaged: {damaged}, found when the stores were opened")


@cache.command(short_help="Say what the activations of each store are like.")
@run_argument
@prefixes_argument
@click.option("--sequences", type=click.IntRange(1), help="Read so many of each store, evenly spaced. [default: all]")
@plugin_option
@json_option()
def measure(run: Path, prefixes: Sequence[str], sequences: int | None, plugins: Sequence[str], as_json: bool) -> None:
    """Read the boundaries of the run RUN, or those in the stores named, and say what they are like.

    \b
    RMS, largest     of all numbers; the largest by magnitude
    outlier          the largest RMS of a feature, as a multiple of their mean
    dims             how many directions share the variance: the participation
                     ratio tr(C)^2 / |C|^2 of the features' covariance C
    int8, fp8, int4  relative error of storing them so, where that is smaller
    """
    kept = Kept.by(run, plugins)
    names = kept.named(prefixes) if prefixes else kept.own
    for name in names if prefixes else []:
        if name in kept.unknown:
            raise UsageError(f"{kept.directory / name} has no record, which would say what is in it.")
    boundaries = [each for each in kept.boundaries if each.namespace in names]
    if not boundaries and not as_json:
        kept.say_how_to_keep()
        return

    from stackwise_core.cli.bars import counting
    from stackwise_core.engine.boundary.activation_statistics import measure_store, sample

    with working(Console(stderr=True), "opening stores"):
        stores = [kept.open(each) for each in boundaries]
        keys = [sample(sorted(store.keys()), sequences) for store in stores]
    total, done, results = sum(map(len, keys)), 0, []
    with counting(Console(stderr=True), "measuring", "sequences") as advance:

        def one_batch_more(size: int) -> None:
            nonlocal done
            done += size
            advance(done, total)

        for boundary, store, wanted in zip(boundaries, stores, keys, strict=True):
            results.append(measure_store(store, boundary.layout, wanted, one_batch_more))
            store.close()
    if as_json:
        listed = [_as_json(each, result) for each, result in zip(boundaries, results, strict=True)]
        print_json({"run": str(run), "directory": str(kept.directory), "stores": listed})
        return
    console = Console()
    print_measures(console, kept, list(zip(boundaries, results, strict=True)))
    read, seconds = sum(each.bytes for each in results), sum(each.seconds for each in results)
    speed = f" at {read / seconds / 1e6:.0f} MB/s" if read else ""
    click.echo(f"\n{kept.directory}: {ByteSize(read)} read{speed}.")


@cache.command(short_help="Delete stores.")
@run_argument
@prefixes_argument
@click.option("--yes", is_flag=True, help="Don't ask.")
@plugin_option
def drop(run: Path, prefixes: Sequence[str], yes: bool, plugins: Sequence[str]) -> None:
    """Delete the boundaries of the run RUN, or the stores named.

    What is needed again is computed again.
    """
    from stackwise_core.engine.runs.directory import RunDirectory

    refuse_other_than_run(run)
    with ExitStack() as locks:
        locks.enter_context(RunDirectory(run).locked())
        kept = Kept.by(run, plugins)
        names = kept.named(prefixes) if prefixes else kept.own
        if not names:
            kept.say_how_to_keep()
            return
        records = {each.namespace: each for each in kept.boundaries if each.namespace in names}
        for other in sorted({Path(each.run).resolve() for each in records.values()} - {run.resolve()}):
            if other.is_dir():
                locks.enter_context(RunDirectory(other).locked())
        freed = ByteSize(sum(bytes_in(kept.directory / name) for name in names))
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{stores_text(len(names))}, {freed}: give --yes to drop them without being asked.")
            rows = [
                (kept.short(name), kept.place(name), str(ByteSize(bytes_in(kept.directory / name)))) for name in names
            ]
            print_table(Console(), ("store", "boundary", "on disk"), rows, left=2)
            if not click.confirm(f"\nDrop {stores_text(len(names))}, {freed}?"):
                click.echo("Nothing was dropped.")
                raise SystemExit(1)
        with working(Console(stderr=True), "dropping") as tell:
            for place, name in enumerate(names):
                tell(f"{place} of {stores_text(len(names))}")
                if name in records:
                    store = kept.open(records[name])
                    store.drop()
                    store.close()
                if (kept.directory / name).is_dir():
                    shutil.rmtree(kept.directory / name)
                drop_record(kept.directory, name)
    click.echo(f"{kept.directory}: {stores_text(len(names))} dropped, {freed} freed.")


def above(trunk: Sequence[int]) -> str:
    """Return where a boundary is, in words."""
    return f"above stack {trunk[-1]}"


def stores_text(number: int) -> str:
    """Return ``1 store``, ``2 stores``."""
    return f"{number} store{'' if number == 1 else 's'}"


def bytes_in(directory: Path) -> int:
    """Return the bytes of all files in a directory and those below it."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def print_stores(console: Console, kept: Kept, stats: dict[str, CacheStats], sizes: dict[str, int]) -> None:
    """Print a row a store, and one for each directory that has no record."""
    rows = [
        {
            "store": kept.short(each.namespace),
            "boundary": above(each.trunk),
            "phase": each.phase,
            "run": Path(each.run).name,
            "format": each.layout.dtype,
            "entries": str(stats[each.namespace].entries),
            "size": str(ByteSize(sizes[each.namespace])),
            "tokens x d_model": f"{each.layout.tokens} x {each.layout.d_model}",
        }
        for each in kept.boundaries
    ]
    headings = ["store", "boundary", "phase", "run", "format", "entries", "size", "tokens x d_model"]
    for name in kept.unknown:
        known = {"store": kept.short(name), "boundary": "unknown", "size": str(ByteSize(sizes[name]))}
        rows.append({**dict.fromkeys(headings, "-"), **known})
    if len({each.run for each in kept.boundaries}) < 2:
        headings.remove("run")
    print_table(console, headings, [[row[name] for name in headings] for row in rows], left=len(headings) - 3)


def print_measures(console: Console, kept: Kept, measured: Sequence[tuple[StoredBoundary, Measured]]) -> None:
    """Print a row a store; a narrow terminal does without their names."""
    formats = [name for name in ("int8", "fp8", "int4") if any(name in errors_of(each) for _, each in measured)]
    rows = [
        {
            "boundary": above(boundary.trunk),
            "store": kept.short(boundary.namespace),
            "entries": str(result.entries),
            "damaged": str(result.damaged),
            **_statistics_cells(result.statistics),
            **{name: f"{errors_of(result)[name]:.2%}" if name in errors_of(result) else "-" for name in formats},
        }
        for boundary, result in measured
    ]
    left_out = set()
    if console.is_terminal and console.width < ALL_COLUMNS:
        left_out = {"store"} | (set() if any(each.damaged for _, each in measured) else {"damaged"})
    headings = [name for name in rows[0] if name not in left_out]
    print_table(console, headings, [[row[name] for name in headings] for row in rows], left=1 if left_out else 2)


def errors_of(measured: Measured) -> dict[Format, float]:
    """Return the relative error of each smaller format; nothing where no entry was measured."""
    return {} if measured.statistics is None else measured.statistics.errors


def _statistics_cells(statistics: ActivationStatistics | None) -> dict[str, str]:
    if statistics is None:
        return dict.fromkeys(("RMS", "largest", "outlier", "dims"), "-")
    return {
        "RMS": count(statistics.rms),
        "largest": count(statistics.largest),
        "outlier": f"{statistics.outlier:.3g}x #{statistics.outlier_feature}",
        "dims": count(statistics.dimensions),
    }


def _as_json(boundary: StoredBoundary, measured: Measured) -> dict[str, Any]:
    speed = measured.bytes / measured.seconds / 1e6 if measured.bytes else None
    return {**asdict(boundary), **_finite(asdict(measured)), "mb_per_second": speed}


def _finite(value: Any) -> Any:
    """Return a value with null for numbers that JSON has none for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value
