import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
import torch
from attrs import evolve
from click.testing import CliRunner

from stackwise_cache.disk import DiskStore
from stackwise_core.cli import main
from stackwise_core.engine.boundary.codec import encode
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.run_files.stored_boundaries import StoredBoundary, read_records, write_record
from stackwise_core.testing.cache_backend import keys_of
from stackwise_core.testing.fresh import heavy_imports
from tests.tiny import run_tiny

NAMES = ("aa11" * 8, "aa11bb22" * 4, "cc" * 16)
"""Of the stores above stacks 0, 1 and 2; two begin alike."""
LAYOUTS = tuple(Layout(tokens=4, d_model=32, dtype=dtype) for dtype in ("bf16", "int8", "fp32"))
ENTRIES = (10, 5, 20)


def activations(stack: int) -> torch.Tensor:
    """Return the boundary above a stack, [entries, 4, 32], with one outlier feature."""
    hidden = torch.randn(ENTRIES[stack], 4, 32, generator=torch.Generator().manual_seed(stack))
    hidden[..., 7 + stack] *= 50
    return hidden


def keep(directory: Path, run: Path, stacks: Sequence[int] = (0, 1, 2)) -> None:
    """Fill stores, as a run does, and write their records."""
    for stack in stacks:
        layout = LAYOUTS[stack]
        store = DiskStore(directory / NAMES[stack], layout, None, 4)
        store.put(keys_of(*range(ENTRIES[stack])), encode(activations(stack), layout))
        store.close()
        trunk = tuple(range(stack + 1))
        write_record(
            directory, StoredBoundary(NAMES[stack], str(run), f"stack {stack + 1}", trunk, layout, {"torch": "2"})
        )


def make_run(path: Path, cache_backend: str) -> Path:
    """Make the files of a run that the command needs: a manifest, a plan, and a configuration."""
    run = RunDirectory.create(path.parent, path.name)
    run.write_json("plan.json", {})
    run.write_text("config.toml", f'[run]\nname = "{path.name}"\n{cache_backend}')
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that keeps three boundaries."""
    run = make_run(tmp_path / "runs" / "first", '[cache_backend]\nuse = "disk"\nkeep = "rack"\n')
    keep(run / "cache", run)
    return run


@pytest.fixture
def shared(tmp_path) -> tuple[Path, Path, Path]:
    """Two runs, and the directory that they share: the first has two boundaries there, the second one."""
    where = tmp_path / "boundaries"
    table = f'[cache_backend]\nuse = "disk"\nkeep = "rack"\ndirectory = "{where}"\n'
    first, second = (make_run(tmp_path / "runs" / name, table) for name in ("first", "second"))
    keep(where, first, (0, 1))
    keep(where, second, (2,))
    return first, second, where


def cache(*arguments: object):
    return CliRunner().invoke(main, ["cache", *map(str, arguments)])


def as_json(*arguments: object):
    result = cache(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def stores_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def size_of(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def test_stores_are_listed(run):
    """A row each from the bottom up, with as much of the name as tells it from the others, and a total."""
    result = cache("list", run)
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *rows, blank, total = result.stdout.splitlines()
    assert heading.split() == ["store", "boundary", "phase", "format", "entries", "size", "tokens", "x", "d_model"]
    cells = [row.split("  ") for row in rows]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert [[*row[:5], row[6]] for row in cells] == [
        ["aa11aa11", "above stack 0", "stack 1", "bf16", "10", "4 x 32"],
        ["aa11bb22", "above stack 1", "stack 2", "int8", "5", "4 x 32"],
        ["cccccccc", "above stack 2", "stack 3", "fp32", "20", "4 x 32"],
    ]
    assert blank == ""
    assert total.startswith(f"{run}/cache: 3 stores, 35 entries, ")


def test_json_of_the_list_has_all_that_is_known(run):
    """The records, and counts and sizes that are the backend's."""
    (run / "cache" / "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a").mkdir()
    (run / "cache" / "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a" / "file").write_bytes(bytes(123))
    listed = as_json("list", run)
    assert (listed["run"], listed["directory"]) == (str(run), str(run / "cache"))
    assert [each["namespace"] for each in listed["stores"]] == list(NAMES)
    last = listed["stores"][2]
    stats = DiskStore(run / "cache" / NAMES[2], LAYOUTS[2], None, 4).stats()
    assert last == {
        "namespace": NAMES[2],
        "run": str(run),
        "phase": "stack 3",
        "trunk": [0, 1, 2],
        "layout": {"tokens": 4, "d_model": 32, "dtype": "fp32"},
        "made_of": {"torch": "2"},
        "entries": 20,
        "bytes": stats.bytes,
        "damaged": 0,
    }
    assert stats.bytes >= 20 * 4 * 32 * 4
    assert listed["unknown"] == [{"namespace": "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", "bytes": 123}]
    assert listed["bytes"] == sum(each["bytes"] for each in listed["stores"]) + 123


def test_looking_writes_nothing(run):
    """Neither listing nor measuring changes a file."""

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = content()
    cache("list", run)
    cache("measure", run)
    assert content() == before


def test_a_directory_without_a_record_is_unknown(run):
    """It is listed with its size, and can't be measured."""
    (run / "cache" / f"{NAMES[1]}.json").unlink()
    *_, row, _, total = cache("list", run).stdout.splitlines()
    assert row.split()[:4] == ["aa11bb22", "unknown", "-", "-"]
    assert ": 3 stores, 30 entries, " in total
    result = cache("measure", run, "aa11bb")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{run}/cache/{NAMES[1]} has no record, which would say what is in it.\n"
    assert len(as_json("measure", run)["stores"]) == 2


def test_a_shared_directory_lists_every_run(shared):
    """With a column that says whose each store is."""
    first, second, where = shared
    heading, *rows = cache("list", second).stdout.splitlines()[:4]
    assert heading.split()[:4] == ["store", "boundary", "phase", "run"]
    assert [row.split()[6] for row in rows] == ["first", "first", "second"]
    assert as_json("list", first)["directory"] == str(where)


def test_stores_are_measured(run):
    """One row a store, and the table fits 100 columns."""
    result = cache("measure", run)
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *rows, _, total = result.stdout.splitlines()
    facts = ["boundary", "store", "entries", "damaged", "RMS", "largest", "outlier", "dims"]
    assert heading.split() == [*facts, "int8", "fp8", "int4"]
    assert [row.split()[2:6] for row in rows] == [
        ["0", "aa11aa11", "10", "0"],
        ["1", "aa11bb22", "5", "0"],
        ["2", "cccccccc", "20", "0"],
    ]
    assert [row.split()[9] for row in rows] == ["#7", "#8", "#9"]
    # What is in int8 already can only be smaller in int4.
    assert [[cell == "-" for cell in row.split()[-3:]] for row in rows] == [
        [False] * 3,
        [True, True, False],
        [False] * 3,
    ]
    assert max(map(len, result.stdout.splitlines()[:4])) <= 100
    assert total.startswith(f"{run}/cache: ")
    assert total.endswith(" MB/s.")


def test_json_of_measures_is_of_the_decoded_activations(run):
    """In fp32 they are what was put, of which torch says the same."""
    measured = as_json("measure", run)["stores"]
    hidden = activations(2)
    found, statistics = measured[2], measured[2]["statistics"]
    assert (found["namespace"], found["entries"], found["damaged"]) == (NAMES[2], 20, 0)
    assert found["bytes"] == 20 * 4 * 32 * 4
    assert found["mb_per_second"] == pytest.approx(found["bytes"] / found["seconds"] / 1e6)
    assert statistics["rms"] == pytest.approx(hidden.square().mean().sqrt().item())
    assert statistics["largest"] == hidden.abs().max().item()
    assert statistics["outlier_feature"] == 9
    assert list(statistics["errors"]) == ["int8", "fp8", "int4"]
    # What was put in another format is near what was there before.
    assert measured[1]["statistics"]["rms"] == pytest.approx(activations(1).square().mean().sqrt().item(), rel=0.01)


def test_a_sample_is_measured(run):
    """At most so many of each store."""
    assert [each["entries"] for each in as_json("measure", run, "--sequences", 7)["stores"]] == [7, 5, 7]


def test_stores_named_are_measured(run):
    """By as many letters as tell them apart, in the order of the table."""
    found = as_json("measure", run, "cc", "aa11aa")["stores"]
    assert [each["namespace"] for each in found] == [NAMES[0], NAMES[2]]


def test_of_a_shared_directory_the_runs_own_is_measured(shared):
    """Another run's only when it is named."""
    _, second, _ = shared
    assert [each["namespace"] for each in as_json("measure", second)["stores"]] == [NAMES[2]]
    assert [each["namespace"] for each in as_json("measure", second, "aa11aa")["stores"]] == [NAMES[0]]


def test_damage_is_counted(run):
    """An entry with a flipped bit is damaged, and the others are measured."""
    entry = activations(2)[3].numpy().tobytes()
    (shard,) = [path for path in (run / "cache" / NAMES[2]).iterdir() if entry in path.read_bytes()]
    shard.write_bytes(shard.read_bytes().replace(entry, bytes([entry[0] ^ 1]) + entry[1:]))
    found = as_json("measure", run)["stores"][2]
    assert (found["entries"], found["damaged"]) == (19, 1)
    assert cache("measure", run).stdout.splitlines()[3].split()[3:6] == ["cccccccc", "19", "1"]


def test_numbers_that_are_not_finite_stay_valid_json(run):
    """Statistics of activations that overflowed are valid JSON."""
    store = DiskStore(run / "cache" / NAMES[2], LAYOUTS[2], None, 4)
    store.put(keys_of(99), torch.full((1, 4, 32), torch.inf))
    store.close()
    statistics = as_json("measure", run, "cc")["stores"][0]["statistics"]
    assert (statistics["largest"], statistics["rms"], statistics["errors"]["int8"]) == (None, None, None)
    result = cache("measure", run, "cc")
    assert result.exit_code == 0, result.output


def test_a_store_with_nothing_in_it_has_no_measures(run):
    """As after a kill before the first shard."""
    shutil.rmtree(run / "cache" / NAMES[0])
    _, row, *_ = cache("measure", run).stdout.splitlines()
    assert row.split()[3:] == ["aa11aa11", "0", "0", *["-"] * 7]
    assert as_json("measure", run)["stores"][0]["statistics"] is None


@pytest.mark.parametrize(("columns", "has_names"), [("100", True), ("80", False)])
def test_a_narrow_terminal_does_without_names(run, monkeypatch, columns, has_names):
    """The measures are whole, none cut short, and no line is longer than the terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    plain = click.unstyle(cache("measure", run).stdout)
    lines = plain.splitlines()[:5]
    assert ("aa11bb22" in plain, "damaged" in plain) == (has_names, has_names)
    assert "…" not in plain
    assert all("above stack" in line for line in lines[2:])
    assert max(map(len, lines)) <= int(columns)


def test_all_is_dropped(run):
    """Stores, records, and directories that nothing is known of; it says what it frees."""
    (run / "cache" / "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a").mkdir()
    (run / "cache" / "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a" / "file").write_bytes(bytes(10**6))
    result = cache("drop", run, "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list((run / "cache").iterdir()) == []
    assert result.stdout.startswith(f"{run}/cache: 4 stores dropped, 1.0")
    assert result.stdout.endswith(" MB freed.\n")


def test_only_what_is_named_is_dropped(run):
    """The others can still be read."""
    freed = size_of(run / "cache" / NAMES[1])
    result = cache("drop", run, "aa11b", "--yes")
    assert result.exit_code == 0
    assert f"1 store dropped, {freed / 1000:.3g} kB freed" in result.stdout
    assert stores_in(run / "cache") == [NAMES[0], NAMES[2]]
    assert [each.namespace for each in read_records(run / "cache")] == [NAMES[0], NAMES[2]]
    assert [each["damaged"] for each in as_json("measure", run)["stores"]] == [0, 0]


def test_what_a_store_left_behind_goes_too(run):
    """Files that the backend doesn't know are in its directory all the same."""
    (run / "cache" / NAMES[0] / "notes.txt").write_text("mine")
    assert cache("drop", run, "aa11aa", "--yes").exit_code == 0
    assert not (run / "cache" / NAMES[0]).exists()


def test_of_a_shared_directory_the_runs_own_is_dropped(shared):
    """Other runs' boundaries stay, and so does what nothing is known of."""
    first, _, where = shared
    (where / "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a").mkdir()
    assert cache("drop", first, "--yes").exit_code == 0
    assert stores_in(where) == ["5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", NAMES[2]]
    result = cache("drop", first, "--yes")
    assert result.exit_code == 0
    assert "None of the 2 stores there is of this run" in result.stdout
    assert cache("drop", first, "cc", "--yes").exit_code == 0
    assert stores_in(where) == ["5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"]


def test_a_run_that_is_worked_on_keeps_its_boundaries(run):
    """Nothing is deleted under a process that reads it."""
    with RunDirectory(run).locked():
        result = cache("drop", run, "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{run}: another process is working on this run.\n"
    assert len(stores_in(run / "cache")) == 3


def test_another_run_that_is_worked_on_keeps_its_boundaries(shared):
    """Nor is it in a directory that runs share."""
    first, second, where = shared
    with RunDirectory(second).locked():
        result = cache("drop", first, "cc", "--yes")
        assert cache("drop", first, "aa11aa", "--yes").exit_code == 0
    assert result.exit_code == 1
    assert result.stderr == f"{second}: another process is working on this run.\n"
    assert stores_in(where) == [NAMES[1], NAMES[2]]


def test_nobody_to_ask_is_no_consent(run):
    """Without a terminal, --yes has to be given."""
    result = cache("drop", run)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("3 stores, ")
    assert "--yes" in result.stderr
    assert len(stores_in(run / "cache")) == 3


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("y", 0, 0), ("n", 1, 3), ("", 1, 3)])
def test_on_a_terminal_it_asks(run, monkeypatch, answer, exit_code, left):
    """With what would go; anything but yes leaves it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def answering(prompt: str = "") -> str:
        asked.append(prompt)
        return answer

    asked: list[str] = []
    with CliRunner().isolation() as streams:
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("click.termui.visible_prompt_func", answering)
        with pytest.raises(SystemExit) as ended:
            main(["cache", "drop", str(run)])
        shown = streams[0].getvalue().decode()
    assert (ended.value.code or 0) == exit_code
    assert "above stack 2" in shown
    assert "Drop 3 stores, " in shown + "".join(asked)
    assert len(stores_in(run / "cache")) == left


@pytest.mark.parametrize("command", ["measure", "drop"])
def test_a_prefix_that_is_none_is_refused(run, command):
    """With the name that was probably meant."""
    result = cache(command, run, "aa11ab22")
    assert (result.exit_code, result.stdout) == (2, "")
    expected = f"no store in {run}/cache has a name that begins with 'aa11ab22'. Did you mean aa11bb22?"
    assert result.stderr == expected + "\n"


@pytest.mark.parametrize("prefix", ["aa", ""])
@pytest.mark.parametrize("command", ["measure", "drop"])
def test_a_prefix_of_several_is_refused(run, command, prefix):
    """An empty shell variable isn't all of them."""
    result = cache(command, run, prefix)
    count, names = (2, "aa11aa11, aa11bb22") if prefix else (3, "aa11aa11, aa11bb22, cccccccc")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{prefix!r} is the beginning of {count} names: {names}.\n"
    assert len(stores_in(run / "cache")) == 3


def test_names_that_begin_alike_are_shown_longer(run):
    """As long as it takes to name one."""
    shutil.copytree(run / "cache" / NAMES[2], run / "cache" / ("c" * 9 + "d" * 23))
    record = read_records(run / "cache")[2]
    write_record(run / "cache", evolve(record, namespace="c" * 9 + "d" * 23))
    names = [row.split()[0] for row in cache("list", run).stdout.splitlines()[1:5]]
    assert names == ["aa11aa11", "aa11bb22", "c" * 10, "c" * 9 + "d"]


@pytest.mark.parametrize("command", ["list", "measure", "drop"])
class TestRefused:
    """Messages of all commands about a run that keeps nothing."""

    def test_no_run(self, tmp_path, run, command):
        """With the run that was probably meant."""
        result = cache(command, tmp_path / "runs" / "frist")
        assert (result.exit_code, result.stdout) == (2, "")
        expected = f"there is no manifest.json in {tmp_path}/runs/frist. Did you mean {run}?"
        assert result.stderr == f"expected the directory of a run, and {expected}\n"

    def test_no_cache_backend(self, tmp_path, command):
        """One sentence that says how to have one."""
        run = make_run(tmp_path / "plain", "")
        result = cache(command, run)
        assert (result.exit_code, result.stdout) == (2, "")
        how = 'use = "disk" with keep = "rack" does.'
        assert result.stderr == f"{run} has no [cache_backend], so it keeps no boundaries; {how}\n"

    def test_a_backend_in_memory(self, tmp_path, command):
        """It is gone with the process that ran."""
        run = make_run(tmp_path / "quick", '[cache_backend]\nuse = "memory"\n')
        result = cache(command, run)
        assert (result.exit_code, result.stdout) == (2, "")
        how = 'use = "disk" with keep = "rack" does.'
        assert result.stderr == f'{run}: cache_backend.use = "memory" keeps nothing on disk; {how}\n'

    def test_nothing_kept(self, tmp_path, command):
        """The message says how to keep boundaries; to have none is no error."""
        run = make_run(tmp_path / "tidy", '[cache_backend]\nuse = "disk"\n')
        result = cache(command, run)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(f"{run} has no boundaries in {run}/cache. ")
        assert 'keep = "rack" keeps them all' in result.stdout

    def test_nothing_made(self, tmp_path, command):
        """A run that keeps what it makes isn't told to."""
        run = make_run(tmp_path / "early", '[cache_backend]\nuse = "disk"\nkeep = "rack"\n')
        result = cache(command, run)
        assert result.exit_code == 0
        assert result.stdout.endswith("/cache. The run has made none, or they were dropped.\n")

    def test_a_record_that_is_none(self, run, command):
        """It is named."""
        (run / "cache" / f"{NAMES[0]}.json").write_text("{")
        result = cache(command, run)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"{run}/cache/{NAMES[0]}.json: not a boundary's record: JSONDecodeError")


@pytest.mark.parametrize("command", ["list", "measure"])
def test_json_of_nothing(tmp_path, command):
    """An empty list."""
    run = make_run(tmp_path / "tidy", '[cache_backend]\nuse = "disk"\n')
    assert as_json(command, run)["stores"] == []


def test_help_and_a_wrong_run_need_no_torch(tmp_path):
    """Both are there at once."""
    for arguments in (["cache", "measure", "--help"], ["cache", "list", str(tmp_path)]):
        code = f"""
from contextlib import suppress
from stackwise_core.cli import main
with suppress(SystemExit):
    main({arguments!r})
"""
        assert heavy_imports(code, ("torch", "numpy", "safetensors")) == []


@pytest.mark.slow
def test_a_real_run_keeps_what_can_be_listed_measured_and_dropped(tmp_path):
    """The engine's own stores and records, of a run with three stacks: one boundary below each but the first."""
    run = run_tiny(
        tmp_path, {"cache_backend": {"use": "disk", "keep": "rack"}, "training.steps_per_stack": 4}
    ).directory
    listed = as_json("list", run)
    assert [(each["trunk"], each["phase"]) for each in listed["stores"]] == [([0], "stack 1"), ([0, 1], "stack 2")]
    assert (listed["unknown"], listed["directory"]) == ([], str(run / "cache"))
    measured = as_json("measure", run)["stores"]
    assert [each["entries"] for each in measured] == [each["entries"] for each in listed["stores"]]
    assert all(each["entries"] > 0 and each["damaged"] == 0 for each in measured)
    assert cache("drop", run, "--yes").exit_code == 0
    assert list((run / "cache").iterdir()) == []
