"""A run without a step holds no name, and nothing of it is in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import stackwise_core as sw
from stackwise_core.cli import main
from stackwise_core.engine.events.events import Event, RunStarted
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.steps import has_step, has_work, was_only_begun
from tests.command_line import CONFIG
from tests.projects import forget_plugins, project

pytestmark = pytest.mark.slow

SHORT = ("--set", "training.steps_per_stack=1", "--set", "evaluation.sequences=2")
KILLED = """
import os, signal, sys
from stackwise_core.cli import main
from stackwise_core.engine.rack.placement import Placement
Placement.place = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
main(["run", "small.toml", "--set", "rack.tie_embeddings=false"])
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a small configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> Path:
    """Return the directory of a run that was killed before its first step, with a head of its own."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "small.toml").write_text(CONFIG)
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=folder, check=False).returncode == -signal.SIGKILL
    return folder / "runs" / "small"


@pytest.fixture
def killed(here, killed_once) -> Path:
    """A copy of it, where a run of that name would be."""
    directory = here / "runs" / "small"
    shutil.copytree(killed_once, directory)
    assert RunDirectory(directory).has("progress.json")
    assert (directory / "head.safetensors").is_file()
    return directory


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments, *SHORT])


def test_a_corrected_file_has_the_name_of_a_run_without_a_step(killed):
    """Nothing of what was begun is left in its directory; the configuration is the new one's, window and all."""
    assert not has_step(killed)
    assert was_only_begun(killed)
    result = run("small.toml", "--set", "rack.d_model=16")
    assert result.exit_code == 0, result.output
    assert os.listdir("runs") == ["small"] or set(os.listdir("runs")) == {"small", ".tokens"}
    assert not (killed / "head.safetensors").exists()
    assert "d_model = 16" in (killed / "config.toml").read_text()
    assert json.loads((killed / "plan.json").read_text())["rack"]["d_model"] == 16
    assert CliRunner().invoke(main, ["verify", "runs/small"]).exit_code == 0


def test_by_its_directory_it_is_begun_again(killed):
    """With what it was to be, and changes need no permission: there is nothing that they could contradict."""
    result = run("runs/small", "--set", "training.block_lr=0.5")
    assert result.exit_code == 0, result.output
    assert (killed / "head.safetensors").is_file()
    assert "block_lr = 0.5" in (killed / "config.toml").read_text()


def test_by_its_directory_it_has_the_files_that_it_keeps(tmp_path, monkeypatch):
    """The copies of tokenizer and plugins, which its configuration and ``-p`` name, once nothing else is there."""
    folder, moved = project(tmp_path / "project"), tmp_path / "moved"
    monkeypatch.chdir(folder)

    def copy(event: Event) -> None:
        if isinstance(event, RunStarted):
            shutil.copytree(event.directory, moved)
            raise KeyboardInterrupt

    forget_plugins()
    with pytest.raises(KeyboardInterrupt):
        sw.run(folder / "small.toml", listener=copy)
    forget_plugins()
    copies = [moved / "tokenizer.json", moved / "plugins" / "project_own.py", moved / "plugins" / "project_square.py"]
    before = [copy.read_bytes() for copy in copies]
    for name in ("tok.json", "project_own.py", "project_square.py"):
        (folder / name).unlink()
    assert sw.run(sw.load_config(moved, plugins=[str(copy) for copy in copies[1:]])).directory == moved
    forget_plugins()
    assert [copy.read_bytes() for copy in copies] == before
    assert CliRunner().invoke(main, ["verify", str(moved)]).exit_code == 0


def test_a_text_that_has_changed_is_no_obstacle(killed):
    """A run with a step would be refused: its plan was another."""
    Path("other.txt").write_text("In the beginning. " * 500)
    assert run("small.toml", "--set", "data.corpus=other.txt").exit_code == 0


def test_another_process_is_not_disturbed(killed):
    """While one is at work before its first step, the name is its own."""
    with RunDirectory(killed).locked():
        result = run("small.toml")
    assert result.exit_code == 1
    assert "another process is working on this run" in result.output
    assert (killed / "head.safetensors").is_file()


@pytest.mark.parametrize("left", [(), ("config.toml.0.new", ".plan.json.0.new.7.tmp")])
def test_a_directory_that_was_only_made_is_begun_in(here, left):
    """A process that was killed at once leaves it empty, or with files that don't count."""
    (here / "runs" / "small").mkdir(parents=True)
    for name in left:
        (here / "runs" / "small" / name).write_text("half")
    assert run("small.toml").exit_code == 0
    assert set(os.listdir("runs")) <= {"small", ".tokens"}
    assert not any(path.name in left for path in (here / "runs" / "small").iterdir())


def test_a_directory_of_somebody_else_s_is_left_alone(here):
    """It is no run, and what is in it stays."""
    (here / "runs" / "small").mkdir(parents=True)
    (here / "runs" / "small" / "notes.txt").write_text("mine")
    assert run("small.toml").exit_code == 0
    assert os.listdir(here / "runs" / "small") == ["notes.txt"]
    assert (here / "runs" / "small-2").is_dir()


@pytest.mark.parametrize("sign", ["metrics", "checkpoint", "phase", "damaged"])
def test_each_sign_of_a_step_is_one(killed, sign):
    """A line of metrics, a checkpoint, a phase; unreadable progress is left to the command that resumes the run."""
    directory = RunDirectory(killed)
    if sign == "metrics":
        directory.metrics.write_text("{}\n")
    elif sign == "checkpoint":
        directory.write_checkpoint("000", {}, {})
    elif sign == "phase":
        directory.write_json("progress.json", {"phases": [{}], "metrics": 0})
    else:
        (killed / "progress.json").write_text("[")
    assert has_step(killed)
    assert not was_only_begun(killed)


def test_boundaries_are_work(killed):
    """They may have taken hours; an error before the first step doesn't delete them."""
    assert not has_work(killed)
    (killed / "cache" / "abc").mkdir(parents=True)
    assert not has_work(killed)
    (killed / "cache" / "abc" / "shard").write_text("rows")
    assert has_work(killed)
    assert not has_step(killed)
    RunDirectory(killed).clear()
    assert [path.name for path in killed.iterdir()] == ["cache"]
