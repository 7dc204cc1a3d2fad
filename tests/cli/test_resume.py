"""`stackwise run` resumes an interrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stackwise_core.cli import main
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.runs.directory import RunDirectory
from tests.command_line import CONFIG, interruptible

STEPS = ("--set", "checkpoint.steps=1")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a small configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG + "[checkpoint]\nsteps = 1\n")
    return tmp_path


@pytest.fixture
def interrupted(here, monkeypatch) -> Path:
    """A run that was interrupted in its sixth step."""
    taken = []
    backward = TrainingStep.backward

    def stop_in_the_sixth(*arguments):
        taken.append(True)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return backward(*arguments)

    monkeypatch.setattr(TrainingStep, "backward", stop_in_the_sixth)
    result = run("small.toml")
    assert result.exit_code == 130, result.output
    assert '"stackwise run runs/small" resumes this run.' in result.output
    return here / "runs" / "small"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["small.toml", "runs/small"])
def test_an_interrupted_run_resumes(here, interrupted, file):
    """Its configuration or its directory resumes it, at the right step; once it has finished, a new one begins."""
    result = run(file)
    assert result.exit_code == 0, result.output
    assert "stack 0: resumes at step 6 of" in result.output
    assert os.listdir(here / "runs") in (["small", ".tokens"], [".tokens", "small"], ["small"])
    assert run("small.toml").exit_code == 0
    assert (here / "runs" / "small-2").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["small.toml", "runs/small"])
def test_fresh_begins_anew(here, interrupted, file):
    """--fresh begins in a directory of its own; the interrupted run doesn't change."""
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    result = run(file, "--fresh")
    assert result.exit_code == 0, result.output
    assert "resumes" not in result.output
    assert (here / "runs" / "small-2" / "finished.json").is_file()
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("file", ["small.toml", "runs/small"])
@pytest.mark.parametrize("accept", [(), ("--accept-change",)])
def test_a_change_that_weights_depend_on_is_refused_with_what_changed(interrupted, file, accept):
    """The refusal shows each key with both values, accepted or not, and the run's file doesn't change."""
    said = (interrupted / "config.toml").read_bytes()
    result = run(file, "--set", "training.block_lr=0.5", "--set", "run.log_every=2", *accept)
    assert result.exit_code == 2
    assert result.output.startswith("runs/small was interrupted, and began with another configuration:\n")
    assert "  run.log_every: 10 -> 2\n  training.block_lr: 0.001 -> 0.5\n" in result.output
    assert "training.block_lr changes what comes out. Put it back to resume that run" in result.output
    assert "--fresh" in result.output
    assert (interrupted / "config.toml").read_bytes() == said


@pytest.mark.slow
@pytest.mark.parametrize("file", ["small.toml", "runs/small"])
def test_a_change_that_no_weight_depends_on_may_be_accepted(interrupted, file):
    """It is refused without --accept-change. With it the run resumes and records the new value."""
    change = ("--set", "run.log_every=2", "--set", "evaluation.draws=1", "--set", "cache_backend.capacity=1 GB")
    change += ("--set", "data.workers=0", "--set", "training.boundaries=cache")
    refused = run(file, *change)
    assert refused.exit_code == 2
    assert "--accept-change resumes it" in refused.output
    accepted = run(file, *change, "--accept-change")
    assert accepted.exit_code == 0, accepted.output
    assert "resumes at step 6" in accepted.output
    assert "log_every = 2\n" in (interrupted / "config.toml").read_text()
    assert not RunDirectory(interrupted).manifest.problem("config.toml")


@pytest.mark.slow
def test_a_window_that_was_left_out_is_no_change(here, interrupted):
    """The run chose the window when it began."""
    assert "window" not in (here / "small.toml").read_text()
    assert "window = " in (interrupted / "config.toml").read_text()
    assert run("small.toml").exit_code == 0


def test_a_configuration_that_was_edited_in_the_runs_directory_is_refused(interrupted):
    """The message says what to do instead."""
    path = interrupted / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 1"))
    result = run("runs/small")
    assert result.exit_code == 1
    assert "changes are for --set KEY=VALUE with --accept-change" in result.output


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused(here, interrupted):
    """The lock holds while another process works on the run, and ends with that process, even by SIGKILL."""
    code = (
        "import time\nfrom pathlib import Path\nfrom stackwise_core.engine.runs.directory import RunDirectory\n"
        f"lock = RunDirectory(Path({str(interrupted)!r})).locked(); lock.__enter__(); print('held', flush=True)\n"
        "time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    for file in ("runs/small", "small.toml"):
        result = run(file)
        assert result.exit_code == 1
        assert "runs/small: another process is working on this run." in result.output
        assert "resumes" not in result.output
    holder.kill()
    holder.wait()
    assert run("runs/small").exit_code == 0


def started(here: Path, *arguments: str) -> subprocess.Popen[str]:
    """A long run of the command line that has taken some steps."""
    command = ["run", "small.toml", "--set", "training.epochs_per_stack=400", *arguments]
    process = interruptible(command, stderr=subprocess.STDOUT)
    metrics = here / "runs" / "small" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"kind": "step"') > 1):
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(here, number):
    """The step is finished, the exit code is 130, and the run resumes from that step."""
    process = started(here)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "stopping after this step; once more stops at once" in output
    assert '"stackwise run runs/small" resumes this run.' in output
    run_directory = RunDirectory(here / "runs" / "small")
    newest = run_directory.checkpoints()[-1]
    steps = json.loads((here / "runs" / "small" / "resume" / f"{newest}.json").read_text())["state"]["step"]
    assert steps >= 2
    assert not any(run_directory.manifest.problem(name) for name in run_directory.manifest)


@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_breaks_nothing(here):
    """Every file in the manifest is whole."""
    process = started(here, "--set", "checkpoint.steps=1000000")
    process.send_signal(signal.SIGSTOP)  # so that both come together
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not RunDirectory(here / "runs" / "small").checkpoints()  # the first alone would have left one
    manifest = RunDirectory(here / "runs" / "small").manifest
    assert not any(manifest.problem(name) for name in manifest)
