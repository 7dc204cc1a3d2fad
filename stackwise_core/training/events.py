"""What the engine tells whoever watches: the terminal, a log, a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from stackwise_core.inference.evaluate import BandRoute, Likelihood
from stackwise_core.training.phase_plan import PhasePlan
from stackwise_core.training.plan import Plan


@frozen
class RunStarted:
    """The plan stands, and so does the run's directory."""

    plan: Plan
    directory: Path
    name: str
    """``run.name``; the directory has a number behind it where there is an earlier run of that name."""
    phases_done: int = 0
    """Of a run that goes on."""


@frozen
class EnvironmentChanged:
    """A run goes on where not all is as it was when it began, so that its bits may be others."""

    differences: tuple[str, ...]


@frozen
class PhaseStarted:
    """A phase begins."""

    planned: PhasePlan


@frozen
class BoundaryProgress:
    """A window's boundaries are being made: its chunks pass the stacks of the trunk."""

    planned: PhasePlan
    passes: int
    """How many times a chunk has passed a stack."""
    total: int
    """How many times one will have when the window is ready."""


@frozen
class StepDone:
    """An optimizer step was taken."""

    planned: PhasePlan
    step: int
    """From 1."""
    loss: float
    """Of this step, in nats a token."""
    learning_rate: float
    """Of the stacks, or of the adapters where these train alone; before ``stack_lr_multipliers``."""
    grad_norm: float
    tokens_per_second: float
    """Over the phase so far, boundaries and validations included."""
    peak_bytes: int
    """Most memory held in this phase so far."""
    masked: float | None
    """Share of the step's tokens that were masked; None where nothing is."""
    learning_rates: Mapping[str, float]
    """Of each part that trains: stacks, adapters, embedding, head, and single stacks that have their own."""


@frozen
class PhaseResumed:
    """A phase goes on from a checkpoint, or from its beginning where none of them is whole."""

    planned: PhasePlan
    step: int
    """How many of its steps are over."""
    damaged: tuple[str, ...]
    """What was wrong with newer checkpoints."""


@frozen
class CheckpointWritten:
    """A checkpoint that somebody asked for is on disk."""

    planned: PhasePlan
    step: int
    """How many of the phase's steps are in it."""


@frozen
class BadStep:
    """A step was left out, since its loss or its gradient isn't a finite number."""

    planned: PhasePlan
    step: int
    """From 1."""
    reason: str


@frozen
class LossSpike:
    """A step's loss was far above those before it."""

    planned: PhasePlan
    step: int
    loss: float
    mean: float
    """Exponential mean of the losses so far."""


@frozen
class Validated:
    """A phase's own loss was taken on held-out text."""

    planned: PhasePlan
    step: int
    """After how many of the phase's steps."""
    loss: float
    """In nats a token."""


@frozen
class PhaseResult:
    """A phase, measured."""

    name: str
    steps: int
    seconds: float
    first_loss: float
    """Mean over the first tenth of the steps."""
    last_loss: float
    """Mean over the last tenth of the steps."""
    tokens_per_second: float
    peak_bytes: int
    stopped_early: bool
    """Whether it ended at a plateau, before its budget did."""
    boundaries_computed: int
    boundaries_read: int
    """Read from the store by training steps."""
    boundaries_evicted: int
    boundaries_damaged: int
    boundaries_wanted: int = 0
    """Activations that were asked for, a window at a time."""
    boundaries_found: int = 0
    """Of these, in the store already."""
    boundaries_repeated: int = 0
    """Equal to one of another sequence, which so serves both."""
    bad_steps: int = 0
    """Left out, since a loss or gradient wasn't a finite number."""
    loss_spikes: int = 0
    """Steps whose loss was far above those before them."""


@frozen
class PhaseDone:
    """A phase ended, and its weights are on disk."""

    planned: PhasePlan
    result: PhaseResult


@frozen
class EvaluationProgress:
    """Validation sequences were measured."""

    done: int
    total: int


@frozen
class RunResult:
    """A finished run."""

    directory: Path
    phases: tuple[PhaseResult, ...]
    routes: tuple[BandRoute, ...]
    likelihoods: tuple[Likelihood, ...]
    """By depth, the whole rack's last; empty without a validation split."""
    keeps_weights: bool = True


@frozen
class RunDone:
    """All phases ended, and the rack was evaluated."""

    result: RunResult


Event = (
    RunStarted
    | EnvironmentChanged
    | PhaseStarted
    | PhaseResumed
    | BoundaryProgress
    | StepDone
    | CheckpointWritten
    | BadStep
    | LossSpike
    | Validated
    | PhaseDone
    | EvaluationProgress
    | RunDone
)
Listener = Callable[[Event], None]
