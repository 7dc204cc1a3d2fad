"""``stackwise runs``, and names of runs in place of directories."""

import json
import os
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.cli.arguments import Run
from stackwise_core.cli.runs import age
from stackwise_core.testing.fresh import heavy_imports
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    changes = {"rack.stacks": 2, "training.steps_per_stack": 2, "evaluation": {"sequences": 2, "draws": 1}}
    return run_tiny(tmp_path_factory.mktemp("whole"), changes).directory


@pytest.fixture
def here(tmp_path, whole, monkeypatch) -> Path:
    """A working directory with a run, a damaged one, and a directory that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        shutil.copytree(whole, f"runs/{name}")
        os.utime(f"runs/{name}/manifest.json", (1e9, 1e9))
    os.remove("runs/second/stacks/001.safetensors")
    Path("runs/notes").mkdir()
    return tmp_path


def stackwise(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_row_a_run(here):
    """And below, what is wrong with those that are damaged."""
    result = stackwise("runs")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *rows, empty, problem = result.stdout.splitlines()
    assert heading.split() == ["run", "state", "phases", "nats/token", "bits/byte", "size", "age"]
    assert sorted(row.split()[:3] for row in rows) == [
        ["first", "finished", "2/2"],
        ["notes", "no", "run"],
        ["second", "damaged", "2/2"],
    ]
    assert (empty, problem) == ("", "second: stacks/001.safetensors: missing; it was deleted since it was written")


def test_json_has_the_same(here):
    """With numbers in full and when the run last wrote."""
    read = json.loads(stackwise("runs", "--json").stdout)
    assert read["directory"] == "runs"
    runs = {run["name"]: run for run in read["runs"]}
    measured = [json.loads(line) for line in Path("runs/first/metrics.jsonl").read_text().splitlines()][-1]
    first = runs["first"]
    assert (first["path"], first["state"], first["phases_done"], first["phases"]) == ("runs/first", "finished", 2, 2)
    assert first["nats_per_token"] == measured["nats_per_token"]
    assert first["bits_per_byte"] == measured["bits_per_byte"]
    assert first["bytes"] == sum(path.stat().st_size for path in Path("runs/first").rglob("*") if path.is_file())
    assert first["changed"].endswith("+00:00")
    assert runs["notes"]["state"] == "no run"
    assert runs["second"]["problems"]


def test_where_the_configuration_has_runs(here):
    """Unless a directory is given."""
    Path("stackwise.toml").write_text('[run]\ndirectory = "elsewhere"\n')
    assert stackwise("runs").stdout == 'There is no directory elsewhere yet. "stackwise run" makes one.\n'
    assert json.loads(stackwise("runs", "--json").stdout) == {"directory": "elsewhere", "runs": []}
    assert "first" in stackwise("runs", "runs").stdout
    refused = stackwise("runs", "rusn")
    assert (refused.exit_code, refused.stderr) == (2, "no such directory: rusn\n")


def test_it_imports_no_torch(here):
    """So that it answers at once."""
    code = "from stackwise_core.cli import main; main(['runs'], standalone_mode=False)"
    assert heavy_imports(code, ("torch", "transformers", "peft", "bitsandbytes")) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (47 * 3600, "47 h"), (48 * 3600, "2 days")],
)
def test_an_age_is_never_rounded_up(seconds, text):
    """Of a clock that was put back it is nothing."""
    assert age(seconds) == text


def parameters(command: click.Command, name: str):
    """Every parameter of a command and of those within it, with its command's name."""
    yield from ((name, parameter) for parameter in command.params)
    for inner in getattr(command, "commands", {}).values():
        yield from parameters(inner, f"{name} {inner.name}")


def test_names_serve_wherever_a_run_is_asked_for():
    """Each argument that is called RUN takes a run's name."""
    context = click.Context(main)
    asking = {
        name: parameter.type
        for command in main.list_commands(context)
        for name, parameter in parameters(main.resolve_command(context, [command])[1], command)
        if isinstance(parameter, click.Argument) and (parameter.metavar or "").startswith("RUN")
    }
    assert set(asking) >= {"evaluate", "sample", "report", "verify", "restore", "merge", "export", "cache list"}
    assert all(isinstance(kind, Run) for kind in asking.values())


def test_a_run_by_its_name(here):
    """What is printed has the path; a wrong name has the nearest one."""
    assert stackwise("verify", "first").stdout.startswith("runs/first: ")
    assert stackwise("run", "first").stdout.startswith("runs/first is finished.")
    assert json.loads(stackwise("report", "first", "runs/first", "--json").stdout)["runs"][1]["run"] == "runs/first"
    wrong = stackwise("evaluate", "fisrt")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert 'Did you mean "first"?' in wrong.stderr
