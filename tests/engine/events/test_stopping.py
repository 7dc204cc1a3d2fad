import errno
import json
import os
import signal

import pytest
import torch

from stackwise_core.engine.events.events import (
    BoundaryProgress,
    CheckpointWritten,
    EvaluationProgress,
    PhaseDone,
    PhaseResumed,
    StepDone,
)
from stackwise_core.engine.events.stopping import SIGNALS, Stopping
from stackwise_core.engine.loop.beginning import is_finished
from stackwise_core.engine.loop.running_phase import RunningPhase
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.errors import is_out_of_memory
from tests.interrupted_runs import engine
from tests.run_bits import bits, measured, same
from tests.tiny import run_tiny

CHANGES = {"rack.stacks": 2, "training.steps_per_stack": 4, "cache_backend": {"use": "disk"}}


@pytest.fixture(autouse=True)
def interrupts_are_heeded():
    """A shell's background jobs ignore Ctrl-C, and a run leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_steps_are_taken_is_noted(number):
    """The first is told and noted, the second interrupts; afterwards the handlers are those of before."""
    told = []
    stopping, before = Stopping(lambda: told.append(True)), [signal.getsignal(each) for each in SIGNALS]
    with stopping.heeding(), stopping.deferred():
        os.kill(os.getpid(), number)
        assert stopping.requested
        assert told == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        stopping.stop()
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_elsewhere_interrupts_at_once(number):
    """While nothing is to be finished there is nothing to wait for."""
    with Stopping().heeding(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def stopped(tmp_path, when) -> int:
    """A run that is asked to stop at an event, and goes on afterwards; the step from which it does."""

    def listen(event) -> None:
        if when(event) and not run.stopping.requested:
            run.stopping.requested = True

    run = engine(tmp_path, CHANGES, listen)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    events: list = []
    engine(tmp_path, CHANGES, events.append, run.directory).run()
    assert same(bits(run.directory), bits(run_tiny(tmp_path / "undisturbed", CHANGES).directory))
    return next((event.step for event in events if isinstance(event, PhaseResumed)), 0)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_finishes_its_step(tmp_path):
    """It leaves a checkpoint of that very step, and ends with the same bits when it has gone on."""
    assert stopped(tmp_path, lambda event: isinstance(event, StepDone) and event.step == 3) == 3


def test_a_run_that_is_asked_to_stop_while_boundaries_are_made_does_not_make_them_all(tmp_path):
    """It needn't pass its whole window, and ends with the same bits when it has gone on."""
    assert stopped(tmp_path, lambda event: isinstance(event, BoundaryProgress)) == 0


def test_a_run_that_is_asked_to_stop_in_a_phases_last_step_goes_on_behind_it(tmp_path):
    """The phase is not trained once more."""
    assert stopped(tmp_path, lambda event: isinstance(event, StepDone) and event.step == event.planned.steps) == 4


def test_measuring_is_interrupted_at_once_and_done_when_the_run_goes_on(tmp_path):
    """There is no step to finish: a first signal interrupts, and the run that goes on measures all of it."""
    ours = CHANGES | {"evaluation": {"draws": 1, "sequences": 8}}

    def listen(event) -> None:
        if isinstance(event, EvaluationProgress):
            os.kill(os.getpid(), signal.SIGINT)

    run = engine(tmp_path, ours, listen)
    with run.stopping.heeding(), pytest.raises(KeyboardInterrupt):
        run.run()
    assert not run.stopping.requested
    result = engine(tmp_path, ours, lambda event: None, run.directory).run()
    undisturbed = run_tiny(tmp_path / "undisturbed", ours)
    assert result.likelihoods == undisturbed.result.likelihoods
    assert measured(run.directory) == measured(undisturbed.directory)


@pytest.mark.slow
def test_a_run_that_is_interrupted_before_it_begins_leaves_nothing(tmp_path, monkeypatch):
    """Nobody was told of it, and nothing was trained; one that goes on stays where it is."""
    run = engine(tmp_path, CHANGES, lambda event: None)
    begin = run.record.begin
    monkeypatch.setattr(run.record, "begin", lambda: [begin(), os.kill(os.getpid(), signal.SIGINT)])
    with run.stopping.heeding(), pytest.raises(KeyboardInterrupt):
        run.run()
    assert not run.directory.exists()
    assert stopped(tmp_path / "other", lambda event: isinstance(event, StepDone) and event.step == 2) == 2
    again = engine(tmp_path / "other", CHANGES, lambda event: None, tmp_path / "other" / "runs" / "tiny")
    monkeypatch.setattr(again.record, "begin", lambda: os.kill(os.getpid(), signal.SIGINT))
    with again.stopping.heeding(), pytest.raises(KeyboardInterrupt):
        again.run()
    assert again.directory.exists()


def test_a_signal_after_the_last_step_stops_before_measuring(tmp_path):
    """What was asked for while the last phase was written is not forgotten."""

    def listen(event) -> None:
        if isinstance(event, PhaseDone) and event.planned.phase.name == "stack 1":
            run.stopping.requested = True

    run = engine(tmp_path, CHANGES, listen)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not (run.directory / "finished.json").exists()
    assert engine(tmp_path, CHANGES, lambda event: None, run.directory).run().likelihoods


@pytest.mark.slow
@pytest.mark.parametrize("save_stacks", [True, False])
def test_a_run_that_stops_while_it_is_measured_goes_on_with_that(tmp_path, save_stacks):
    """It ends with what an undisturbed run measured, its metrics have that once, and weights go where they are to."""
    changes = CHANGES | {"checkpoint.save_stacks": save_stacks}

    def listen(event) -> None:
        if isinstance(event, EvaluationProgress):
            raise KeyboardInterrupt

    run = engine(tmp_path, changes, listen)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not is_finished(run.directory)
    assert (run.directory / "stacks").exists()
    result = engine(tmp_path, changes, lambda event: None, run.directory).run()
    assert is_finished(run.directory)
    assert (run.directory / "embedding.safetensors").exists() == save_stacks
    undisturbed = run_tiny(tmp_path / "undisturbed", changes)
    assert result.likelihoods == undisturbed.result.likelihoods
    assert measured(run.directory) == measured(undisturbed.directory)
    kinds = [json.loads(line)["kind"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("likelihood") == len(result.likelihoods) > 0


def test_sigusr1_asks_for_a_checkpoint_and_the_run_goes_on(tmp_path):
    """One is written after the step, its event tells of it, and the bits are those of an undisturbed run."""
    events: list = []

    def listen(event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2 and event.planned.phase.name == "stack 0":
            os.kill(os.getpid(), signal.SIGUSR1)
        if isinstance(event, CheckpointWritten):
            assert run.files.checkpoints() == ["0000-000000002"]

    run = engine(tmp_path, CHANGES, listen)
    with run.stopping.heeding():
        run.run()
    assert [event.step for event in events if isinstance(event, CheckpointWritten)] == [2]
    assert same(bits(run.directory), bits(run_tiny(tmp_path / "undisturbed", CHANGES).directory))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_is_ignored_stays_so(number):
    """As under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stopping().heeding():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


def test_a_terminal_that_hung_up_cannot_be_told():
    """The stop is noted all the same, and the step goes on."""

    def tell() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    stopping = Stopping(tell)
    with stopping.heeding(), stopping.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stopping.requested


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:130] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("method", "goes_on_from"), [("backward", 2), ("_is_plateau", 0), ("_is_good", 0)])
def test_memory_that_runs_out_leaves_a_checkpoint_of_the_last_step(tmp_path, monkeypatch, error, method, goes_on_from):
    """Where weights were being changed, or a validation was due, there is none, and the one before it serves."""
    owner = TrainingStep if method == "backward" else RunningPhase
    calls, original = [], getattr(owner, method)

    def fail(*arguments):
        calls.append(True)
        if len(calls) == 3:
            raise error
        return original(*arguments)

    run = engine(tmp_path, CHANGES, lambda event: None)
    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(type(error)):
        run.run()
    monkeypatch.undo()
    events: list = []
    engine(tmp_path, CHANGES, events.append, run.directory).run()
    assert next((event.step for event in events if isinstance(event, PhaseResumed)), 0) == goes_on_from
    assert same(bits(run.directory), bits(run_tiny(tmp_path / "undisturbed", CHANGES).directory))


def test_torchs_own_error_is_one_of_memory():
    """What its allocator on a CPU raises is no class of its own."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes don't fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
