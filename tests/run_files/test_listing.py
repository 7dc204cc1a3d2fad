"""Rows of the list of runs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.listing import ListedRun, list_runs


def listed(run: Path) -> ListedRun:
    """Return the row of a run in the list of its folder."""
    (found,) = (each for each in list_runs(run.parent) if each.path == run)
    return found


def unfinished(run: Path) -> None:
    """Turn a finished run into one that was interrupted in its second phase."""
    directory = RunDirectory(run)
    with directory.together():
        directory.manifest.drop("finished.json")
        progress = json.loads((run / "progress.json").read_text())
        directory.write_json("progress.json", progress | {"phases": progress["phases"][:1]})
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"likelihood"' not in line))


@pytest.mark.slow
def test_a_finished_run(run):
    """Phases, the bound that the run printed, the bytes that are there."""
    found = listed(run)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (found.state, found.phases_done, found.phases, found.problems) == ("finished", 3, 3, ())
    assert (found.likelihood.depth, found.likelihood.nats_per_token) == (3, last["nats_per_token"])
    assert found.bytes == sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert found.changed == max((run / name).stat().st_mtime for name in ("manifest.json", "metrics.jsonl"))


def test_an_unfinished_run(run):
    """It has no bound yet."""
    unfinished(run)
    found = listed(run)
    assert (found.state, found.phases_done, found.phases, found.likelihood) == ("unfinished", 1, 3, None)


def test_a_run_that_goes_on(run):
    """While a process holds its lock; what is replaced at that moment is no damage."""
    unfinished(run)
    (run / "plan.json").unlink()
    with RunDirectory(run).locked():
        found = listed(run)
    assert (found.state, found.problems) == ("running", ())
    assert listed(run).state == "damaged"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda run: (run / "stacks/001.safetensors").unlink(), "stacks/001.safetensors: missing"),
        (lambda run: os.truncate(run / "stacks/001.safetensors", 9), "stacks/001.safetensors: damaged; it has 9 bytes"),
        (lambda run: (run / "plan.json").write_text("{"), "plan.json: "),
        (lambda run: (run / "manifest.json").write_text("[]"), "manifest.json: not a manifest"),
        (lambda run: (run / "manifest.json").unlink(), "manifest.json: missing"),
        (lambda run: (run / "finished.json").unlink(), "finished.json: missing"),
    ],
)
def test_a_damaged_run(run, damage, problem):
    """With the file and the reason."""
    damage(run)
    found = listed(run)
    assert found.state == "damaged"
    assert any(each.startswith(problem) for each in found.problems), found.problems


def test_a_copy_without_measurements_is_not_damaged(run):
    """A restored or merged run has none."""
    (run / "metrics.jsonl").unlink()
    found = listed(run)
    assert (found.state, found.likelihood) == ("finished", None)


def test_other_directories(run):
    """A strange one is listed as such, a hidden one and a file aren't."""
    for name in (".tokens", "notes"):
        (run.parent / name).mkdir()
    (run.parent / "notes/todo.txt").write_text("four")
    (run.parent / "report.html").touch()
    runs = {each.path.name: (each.state, each.bytes) for each in list_runs(run.parent)}
    assert runs["notes"] == ("no run", 4)
    assert set(runs) == {"tiny", "notes"}


def test_the_last_changed_is_first(run):
    """By when the run wrote, whatever was put beside its files since."""
    later = Path(shutil.copytree(run, run.with_name("later")))
    for directory, when in ((run, 2e9), (later, 1e9)):
        for name in ("manifest.json", "metrics.jsonl", "plan.json"):
            os.utime(directory / name, (when, when))
    (later / "report.html").touch()
    assert [(each.path.name, each.changed) for each in list_runs(run.parent)] == [("tiny", 2e9), ("later", 1e9)]
