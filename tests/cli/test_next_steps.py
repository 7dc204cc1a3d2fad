"""The commands that the end of a run names."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.cli.next_steps import next_steps
from stackwise_core.engine.weights.export import is_one_model
from stackwise_core.registry import Registry
from tests.command_line import CONFIG
from tests.tiny import TEXT, run_tiny

pytestmark = pytest.mark.slow

SHORT = {"rack.stacks": 2, "training.steps_per_stack": 2, "evaluation": {"sequences": 2, "draws": 1}}
KINDS = {
    "plain": {},
    "unmeasured": {"data.validation_fraction": 0.0},
    "causal": {"objective": "clm"},
    "banded": {"trainer_mode": {"use": "banded", "cycles": 1}, "training.weighting": "nelbo"},
    "time": {"training.time": "input"},
    "bare": {"checkpoint": {"save_stacks": False}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by kind."""
    parent = tmp_path_factory.mktemp("next")
    return {name: run_tiny(parent, {**SHORT, "run.name": name, **changes}) for name, changes in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_works(runs, kind, tmp_path, monkeypatch):
    """Each that is named succeeds on that run, and export isn't kept from a run that has it."""
    monkeypatch.chdir(tmp_path)
    ran = runs[kind]
    named = {words[1]: words[1:] for _, words in next_steps(ran.result, ran.plan, Registry.discover(environ={}))}
    for command, words in named.items():
        if command == "report" and kind != "plain":
            continue  # it takes every run, as its own tests have it, and a second of time
        text = [str(TEXT)] if words[-1] == "--corpus" else []
        length = ["--length", "2"] if command == "sample" else []
        result = CliRunner().invoke(main, [*words, *text, *length])
        assert result.exit_code == 0, (words, result.output)
    assert set(named) >= ({"report"} if kind == "bare" else {"evaluate", "sample", "report"})
    if "export" not in named and kind != "bare":
        refused = CliRunner().invoke(main, ["export", str(ran.directory), "--to", "hf", "out"])
        assert refused.exit_code == 2
        assert not is_one_model(ran.plan.spec, len(ran.plan.routes))


def test_a_run_ends_with_them(tmp_path, monkeypatch):
    """With its own path, as a shell takes it; not where JSON is printed."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    short = ("--set", "training.steps_per_stack=1", "--set", 'run.name="a b"')
    said = CliRunner().invoke(main, ["run", "small.toml", *short]).output
    before, _, after = said.partition("\n\nWhat next:\n")
    assert before.endswith("runs/a b holds the weights, the plan and the metrics.")
    commands = [shlex.split(line.partition("stackwise ")[2]) for line in after.splitlines()]
    assert commands == [
        ["evaluate", "runs/a b"],
        ["report", "runs/a b"],
        ["sample", "runs/a b"],
        ["export", "runs/a b", "--to", "hf", "a b-hf"],
    ]
    said = (
        CliRunner()
        .invoke(main, ["-p", "no:sampling", "run", "small.toml", "--fresh", "-p", "no:report", *short])
        .output
    )
    assert [line.split()[4] for line in said.partition("What next:\n")[2].splitlines()] == ["evaluate", "export"]
    again = CliRunner().invoke(main, ["run", "a b"]).stdout
    assert again == "runs/a b is finished. \"stackwise evaluate 'runs/a b'\" measures it.\n"
    shutil.rmtree("runs/a b")
    machine = CliRunner().invoke(main, ["run", "small.toml", *short, "--json"])
    assert "What next" not in machine.output
    assert json.loads(machine.stdout)["directory"] == "runs/a b"
