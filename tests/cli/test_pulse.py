"""Long work says something now and then, on stderr where that is no terminal."""

import threading
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from stackwise_core.cli import main, pulse, run_display
from stackwise_core.cli.bars import counting
from stackwise_core.cli.pulse import Pulse, working
from stackwise_core.cli.run_display import Lines, tokenising
from stackwise_core.engine.events.events import EvaluationProgress
from tests.cli.pulse_at_the_end import AtTheEnd
from tests.tiny import TEXT, run_tiny


@pytest.fixture
def impatient(monkeypatch):
    """Silence is over at once."""
    monkeypatch.setattr(pulse, "SECONDS_OF_SILENCE", 0.001)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Collect the output and its times."""
    lines: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text, err: lines.append(f"{'err' if err else 'out'}: {text}"))
    return lines


def wait_for(lines: list[str], text: str) -> None:
    for _ in range(10_000):
        if any(text in line for line in lines):
            return
        threading.Event().wait(0.001)
    pytest.fail(f"{text!r} was never said: {lines[-3:]}")


def test_silent_work_is_heard_of(impatient, said):
    """With how far it is; when it ends, nothing more is said."""
    with working(Console(stderr=True, force_terminal=False), "restoring") as tell:
        wait_for(said, "err: restoring, 0:00 so far")
        tell("stack 3 of 12")
        wait_for(said, "err: restoring: stack 3 of 12, 0:00 so far")
    heard = len(said)
    threading.Event().wait(0.02)
    assert len(said) == heard
    assert not [thread for thread in threading.enumerate() if thread.name == "stackwise-pulse"]


def test_short_work_is_not(monkeypatch, said):
    """Nor is work that has said something itself just now."""
    monkeypatch.setattr(pulse, "SECONDS_OF_SILENCE", 0.2)
    with working(Console(stderr=True, force_terminal=False), "restoring"):
        pass
    speaker = Pulse(lambda: "still here", stderr=True)
    for _ in range(50):
        threading.Event().wait(0.01)
        speaker.postpone()
    speaker.stop()
    assert said == []


def test_who_does_not_listen_disturbs_no_work(impatient, monkeypatch):
    """A closed pipe ends the saying."""
    heard = threading.Event()

    def broken(text, err):
        heard.set()
        raise BrokenPipeError

    monkeypatch.setattr(click, "echo", broken)
    with working(Console(stderr=True, force_terminal=False), "restoring"):
        assert heard.wait(10)


def test_a_terminal_has_a_spinner_that_leaves_nothing():
    """The line is taken away again."""
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=70, _environ={"TERM": "xterm"})
    with working(console, "restoring") as tell:
        tell("stack 3 of 12")
    assert "restoring" in text.getvalue()
    assert text.getvalue().endswith("\x1b[2K")


def test_planning_is_heard_of_before_and_after_tokenising(impatient, said):
    """What is tokenised has its share and the time left."""
    with tokenising(Console(stderr=True, force_terminal=False), "planning") as advance:
        wait_for(said, "err: planning, 0:0")
        advance(1_000_000, 0.25)
        wait_for(said, "err: tokenising: 25 %  1 MB")
        advance(4_000_000, 1.0)
        said.clear()
        wait_for(said, "err: planning, 0:0")


def test_what_is_counted_is_said(impatient, said):
    """As so many of so many."""
    with counting(Console(stderr=True, force_terminal=False), "measuring", "sequences") as advance:
        advance(12, 300)
        wait_for(said, "err: measuring: 12 of 300 sequences, 0:00 so far")


def test_a_run_says_what_takes_so_long(impatient, said):
    """In a pipe, on the stream that it has its lines on."""
    lines = Lines(Console(force_terminal=False, file=StringIO()))
    wait_for(said, "out: beginning, 0:00 so far")
    lines(EvaluationProgress(3, 40))
    wait_for(said, "out: validation: 3 of 40 sequences, 0:00 so far")
    lines.stop()


def test_short_steps_of_a_run_are_no_silence(monkeypatch, said):
    """Each that ends begins it anew, though not each is said."""
    monkeypatch.setattr(pulse, "SECONDS_OF_SILENCE", 3600.0)
    begun = []
    monkeypatch.setattr(Pulse, "postpone", lambda self: begun.append(True))
    lines = Lines(Console(force_terminal=False, file=StringIO()))
    for done in range(4):
        lines(EvaluationProgress(done, 4))
    lines.stop()
    assert len(begun) == 4


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with boundaries on the disk."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 2,
        "cache_backend": {"use": "disk", "keep": "rack"},
        "evaluation": {"sequences": 2, "draws": 1},
    }
    return run_tiny(tmp_path_factory.mktemp("pulse"), changes).directory


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["sample", "RUN", "--length", "3"], ["loading the rack", "sampling: step 3 of 3"]),
        (["sample", "RUN", "--length", "3", "--json"], ["loading the rack", "sampling: step 3 of 3"]),
        (["evaluate", "RUN"], ["loading the rack", "reading the text", "measuring: 2 of 2 sequences"]),
        (["verify", "RUN"], ["verifying: "]),
        (["restore", "RUN", "--precision", "bf16", "--to", "OUT"], ["restoring: stack 1 of 2"]),
        (["export", "RUN", "--to", "hf", "OUT"], ["exporting, "]),
        (["report", "RUN", "--json"], ["reading and drawing, "]),
        (["runs", "RUN/.."], ["looking at the runs, "]),
        (["cache", "list", "RUN"], ["opening stores: "]),
        (["cache", "measure", "RUN"], ["opening stores, ", "measuring: "]),
        (["plan", "RUN"], ["planning, "]),
    ],
    ids=lambda value: value[0] if value[0] != "cache" else value[1],
)
def test_every_long_command_is_heard_of(run, tmp_path, monkeypatch, arguments, lines):
    """On stderr, so that stdout has what it is asked for and nothing else."""
    for module in (pulse, run_display):
        monkeypatch.setattr(module, "Pulse", AtTheEnd)
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in arguments]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    heard = [line for line in result.stderr.splitlines() if line.endswith(" so far")]
    assert len(heard) == len(lines)
    assert all(line.startswith(expected) for line, expected in zip(heard, lines, strict=True)), heard
    assert "so far" not in result.stdout


def test_a_run_is_heard_of_from_its_plan_to_its_end(tmp_path, monkeypatch):
    """With --json on stderr, as all else that it says."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(
        f'[data]\ncorpus = "{TEXT}"\nseq_len = 32\n[training]\nsteps_per_stack = 1\n'
        "[rack]\nstacks = 1\nblocks_per_stack = 1\nd_model = 32\nn_heads = 2\n"
    )
    for module in (pulse, run_display):
        monkeypatch.setattr(module, "Pulse", AtTheEnd)
    result = CliRunner().invoke(main, ["run", "small.toml", "--json"])
    assert result.exit_code == 0, result.output
    heard = [line.partition(",")[0] for line in result.stderr.splitlines() if line.endswith(" so far")]
    assert heard == ["planning", "writing"]
    assert "so far" not in result.stdout
