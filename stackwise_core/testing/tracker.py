"""Contract that every tracker must hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stackwise_core.interfaces.tracker import Measurement, TrackedPhase, TrackedRun, Tracker

BAND = {"band": (0.0, 1.0), "nats_per_token": 2.0, "standard_error": 0.1, "tokens": 30}


def measurements(phase: int, steps: range) -> Iterator[Measurement]:
    """Yield a phase's measurements, one of each kind that it can have."""
    for step in steps:
        numbers = {"loss": 3.0, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 1e4, "peak_bytes": 10**8}
        values = {**numbers, "learning_rates": {"stacks": 1e-3}, "masked": None if step % 2 else 0.5}
        yield Measurement(kind="step", phase=phase, step=step, values=values)
    yield Measurement(kind="validation", phase=phase, step=steps[-1], values={"loss": 2.5})
    yield Measurement(kind="bad_step", phase=phase, step=steps[-1], values={"reason": "the loss is nan"})
    yield Measurement(kind="loss_spike", phase=phase, step=steps[-1], values={"loss": 9.0, "mean": 3.0})


def likelihoods() -> Iterator[Measurement]:
    """Yield the likelihoods of a finished run by depth; causal language modelling has no bands."""
    for depth, bands in ((1, [BAND]), (2, [])):
        numbers = {"depth": depth, "nats_per_token": 2.0, "standard_error": None, "bits_per_byte": 3.0, "tokens": 30}
        yield Measurement(kind="likelihood", phase=None, step=depth, values={**numbers, "bands": bands})


class TrackerContract:
    """Contract of a tracker: subclass it and provide the fixture ``tracker``."""

    @pytest.fixture
    def tracker(self) -> Tracker:
        """Return the tracker to test."""
        raise NotImplementedError("the subclass provides the fixture `tracker`")

    @pytest.fixture
    def run(self, tmp_path: Path) -> TrackedRun:
        """Return a run of two phases."""
        phases = (TrackedPhase("stack 0", 4), TrackedPhase("stack 1, again", 3))
        directory = tmp_path / "runs" / "first"
        directory.mkdir(parents=True)
        return TrackedRun(name="first", directory=directory, phases=phases, config={"run": {"name": "first"}})

    def test_it_takes_a_whole_run(self, tracker: Tracker, run: TrackedRun) -> None:
        """A tracker takes every kind of measurement, of every phase, to the end."""
        tracker.begin(run)
        for place, phase in enumerate(run.phases):
            tracker.begin_phase(place, 0, 4 * place)
            for measurement in measurements(place, range(1, phase.steps + 1)):
                tracker.record(measurement)
        for measurement in likelihoods():
            tracker.record(measurement)
        tracker.close()

    def test_it_resumes_where_a_process_ended(self, tracker: Tracker, run: TrackedRun) -> None:
        """A phase resumes from a checkpoint, with steps that were told of before; an early stop skips the rest."""
        tracker.begin(run)
        tracker.begin_phase(0, 2, 0)
        for measurement in measurements(0, range(3, 5)):
            tracker.record(measurement)
        tracker.begin_phase(1, 0, 4)
        tracker.close()

    def test_it_can_be_closed_at_once(self, tracker: Tracker, run: TrackedRun) -> None:
        """A run may be interrupted before its first phase, or have none left."""
        tracker.begin(run)
        tracker.close()

    def test_measurements_are_left_alone(self, tracker: Tracker, run: TrackedRun) -> None:
        """Other trackers get the same record."""
        told = list(measurements(0, range(1, 3)))
        before = [dict(each.values) for each in told]
        tracker.begin(run)
        tracker.begin_phase(0, 0, 0)
        for measurement in told:
            tracker.record(measurement)
        tracker.close()
        assert [each.values for each in told] == before

    def test_the_run_s_own_files_are_left_alone(self, tracker: Tracker, run: TrackedRun) -> None:
        """A tracker writes into the run's directory under names of its own, and files that are there stay."""
        theirs = {name: run.directory / name for name in ("config.toml", "metrics.jsonl", "plan.json")}
        for name, file in theirs.items():
            file.write_text(name)
        self.test_it_takes_a_whole_run(tracker, run)
        assert {name: file.read_text() for name, file in theirs.items()} == {name: name for name in theirs}
