"""The hook ``tracker`` (provisional): receivers of a run's measurements, beside its own metrics.jsonl."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from stackwise_core.interfaces.component import Component


@frozen
class TrackedPhase:
    """A planned phase."""

    name: str
    """The phase's name."""
    steps: int
    """Planned optimizer steps. An early stop takes fewer, and a phase that others pass steps on to more."""


@frozen(kw_only=True)
class TrackedRun:
    """The run that is measured."""

    name: str
    """``run.name``."""
    directory: Path
    """The run's directory, absolute."""
    phases: tuple[TrackedPhase, ...]
    """The plan, in order."""
    config: Mapping[str, Any]
    """The configuration, as JSON values."""


@frozen(kw_only=True)
class Measurement:
    """A line of metrics.jsonl."""

    kind: Literal["step", "validation", "bad_step", "loss_spike", "likelihood"]
    """The kind of measurement."""
    phase: int | None
    """The phase's place in the plan, from 0. None for a likelihood, which is measured after all phases."""
    step: int
    """Optimizer steps of the phase so far. For a likelihood: the depth, in stacks."""
    values: Mapping[str, Any]
    """Numbers, texts and tables by name, as in metrics.jsonl."""


class Tracker(Component):
    """Receiver of a run's measurements, from the beginning of one process to its end.

    A killed run resumes in another process.

    An exception that it raises ends the run, which can resume from its last checkpoint. A tracker whose service may be
    unreachable catches that error itself.
    """

    def begin(self, run: TrackedRun) -> None:
        """Prepare. Called once in a process, before all other methods."""

    def begin_phase(self, phase: int, done: int, first: int) -> None:
        """Begin a phase, or resume it from a checkpoint.

        Args:
            phase: its place in the plan, from 0.
            done: its completed steps. Measurements of later steps, from an earlier process, no longer count.
            first: optimizer steps that the phases before it took.
        """

    @abstractmethod
    def record(self, measurement: Measurement) -> None:
        """Record a measurement. Those of steps come every ``run.log_every`` steps."""

    def close(self) -> None:
        """Write out and release. Called once, also when the run was interrupted."""
