"""Commands that are ended by somebody, or by what the system lacks, say so and how to go on."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.cli.output import Console
from stackwise_core.cli.run_display import Lines
from stackwise_core.engine.events.events import EvaluationProgress, RunDone, RunStarted, StepDone
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.runs.directory import RunDirectory
from tests.command_line import CONFIG

pytestmark = pytest.mark.slow

RUN = [sys.executable, "-m", "stackwise_core.cli", "run", "small.toml"]
SMALL = CONFIG.replace(
    "[cache_backend]", "steps_per_stack = 3\n[evaluation]\ndraws = 1\nsequences = 4\n[cache_backend]\nshard_entries = 1"
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a small configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def test_a_reader_that_goes_away(here):
    """As ``head -1`` does: stderr has how to go on, and that the run was interrupted; a checkpoint is left."""
    talkative = "from stackwise_core.cli import main, run_display; run_display.SECONDS_BETWEEN_LINES = 0; main()"
    command = [sys.executable, "-c", talkative, "run", "small.toml", "--set", "training.steps_per_stack=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("rack: 2 stacks"):
            assert process.poll() is None
        process.stdout.close()
        said = process.stderr.read()
    assert len(RunDirectory(here / "runs" / "small").checkpoints()) == 1
    assert process.returncode == 130
    resumes = '"stackwise run runs/small" resumes this run.'
    assert said == f"Progress can't be shown (Broken pipe), so the run was stopped. {resumes}\n\ninterrupted\n"


def test_a_reader_that_goes_away_before_a_run_begins(here, monkeypatch):
    """Nothing was begun, which is said."""

    def fail(*arguments: object, **options: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(Console, "print", fail)
    result = CliRunner().invoke(main, ["run", "small.toml"])
    assert result.exit_code == 1
    assert "Progress can't be shown (Broken pipe), so no run was begun." in result.stderr
    assert not (here / "runs" / "small").exists()


def test_a_terminal_that_hangs_up(here):
    """Nothing can be told any more, and a checkpoint is left of a step: the run goes on from it."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*RUN, "--set", "training.steps_per_stack=100000"])
    seen = b""
    while b"loss" not in seen:
        seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    directory = RunDirectory(here / "runs" / "small")
    assert len(directory.checkpoints()) == 1
    assert not any(directory.manifest.problem(name) for name in directory.manifest)


@pytest.mark.parametrize(
    ("event", "number", "exit_code"),
    [
        (RunStarted, errno.EPIPE, 130),
        (StepDone, errno.EIO, 130),
        (EvaluationProgress, errno.ENOSPC, 130),
        (RunDone, errno.EPIPE, 0),
    ],
)
def test_output_that_fails(here, monkeypatch, event, number, exit_code):
    """Whenever it does: the run stops with a checkpoint, after a step at least, and goes on to its end."""
    show = Lines.__call__

    def failing(self: Lines, each: object) -> None:
        if isinstance(each, event):
            raise OSError(number, os.strerror(number))
        show(self, each)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", failing)
        result = CliRunner().invoke(main, ["run", "small.toml"])
    assert result.exit_code == exit_code, result.output
    directory = RunDirectory(here / "runs" / "small")
    assert directory.checkpoints() == (["0000-000000001"] if event in (RunStarted, StepDone) else [])
    if exit_code:
        assert f"({os.strerror(number)}), so the run was stopped." in result.stderr
        assert '"stackwise run runs/small" resumes this run.' in result.stderr
        assert CliRunner().invoke(main, ["run", "small.toml"]).exit_code == 0
    assert (here / "runs" / "small" / "finished.json").exists()


def test_memory_that_runs_out(here, monkeypatch):
    """Torch's own error has the message, and the line that says how to go on."""
    calls, backward = [], TrainingStep.backward

    def fail(*arguments):
        calls.append(True)
        if len(calls) == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory")
        return backward(*arguments)

    monkeypatch.setattr(TrainingStep, "backward", fail)
    result = CliRunner().invoke(main, ["run", "small.toml"])
    assert result.exit_code == 1
    assert result.stderr.startswith('"stackwise run runs/small" resumes this run.\nout of memory. ')
    assert "stack 0: resumes at step 3 of 3" in CliRunner().invoke(main, ["run", "small.toml"]).output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_any_command_with_a_word(monkeypatch, number):
    """And its exit code; handlers are as before. One that is ignored stays so."""
    action = click.Command("wait", callback=lambda: os.kill(os.getpid(), number))
    monkeypatch.setitem(main.commands, "wait", action)
    before = signal.getsignal(number)
    result = CliRunner().invoke(main, ["wait"])
    assert (result.exit_code, result.stderr) == (130, "\ninterrupted\n")
    assert signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)
    try:
        assert CliRunner().invoke(main, ["wait"]).exit_code == 0
    finally:
        signal.signal(number, before)


def test_few_files_may_be_open(here):
    """A run with more shards than that ends well."""
    command = [*RUN, "--set", "cache_backend.keep=rack"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((here / "runs" / "small" / "cache").rglob("*.safetensors"))) > 64


@pytest.mark.parametrize(
    "call",
    [
        "tempfile.mkdtemp",
        "stackwise_core.engine.draws.sequences.map_array",
        "stackwise_core.engine.loop.training_step.TrainingStep.backward",
    ],
)
def test_too_many_open_files_names_the_limit(here, monkeypatch, call):
    """The file or directory that couldn't be opened isn't to blame."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "somewhere")

    monkeypatch.setattr(call, fail)
    result = CliRunner().invoke(main, ["run", "small.toml"])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert result.exit_code == 1
    assert f"This process may open {limit} files at a time; ulimit -n raises that." in result.stderr
    assert "damaged" not in result.stderr
