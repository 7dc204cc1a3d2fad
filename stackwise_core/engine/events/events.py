"""Events that the engine reports to its listener: the terminal, a log, a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from stackwise_core.engine.evaluation.evaluate import Likelihood
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.run_files.progress_file import PhaseResult


@frozen
class RunStarted:
    """Start of a run: the plan and the run's directory are made."""

    plan: Plan
    directory: Path
    name: str
    """``run.name``; the directory has a number behind it where there is an earlier run of that name."""
    phases_done: int = 0
    """Number of phases that a resumed run has behind it."""


@frozen
class EnvironmentChanged:
    """Resumption of a run in a changed environment, so that its bits may be others."""

    differences: tuple[str, ...]


@frozen
class PhaseStarted:
    """Beginning of a phase."""

    planned: PhasePlan
    first: int = 0
    """Optimizer steps that the phases before it took."""


@frozen
class BoundaryProgress:
    """Progress of a window's boundaries: its chunks pass the stacks of the trunk."""

    planned: PhasePlan
    passes: int
    """Number of times that a chunk has passed a stack."""
    total: int
    """Number of such passes when the window is ready."""


@frozen
class StepDone:
    """End of an optimizer step."""

    planned: PhasePlan
    step: int
    """Number of the step, from 1."""
    loss: float
    """Loss of this step, in nats a token."""
    learning_rate: float
    """Rate of the stacks, or of the adapters where these train alone; before ``stack_lr_multipliers``."""
    grad_norm: float
    tokens_per_second: float
    """Speed over the phase so far, boundaries and validations included."""
    peak_bytes: int
    """Most memory held in this phase so far."""
    masked: float | None
    """Share of the step's tokens that were masked; None where nothing is."""
    learning_rates: Mapping[str, float]
    """Rates of each part that trains: stacks, adapters, embedding, head, and single stacks that have their own."""


@frozen
class PhaseResumed:
    """Resumption of a phase from a checkpoint, or from its beginning where none of them is whole."""

    planned: PhasePlan
    step: int
    """Number of its steps that are over."""
    damaged: tuple[str, ...]
    """Faults of newer checkpoints."""


@frozen
class CheckpointWritten:
    """Writing of a checkpoint that a user asked for."""

    planned: PhasePlan
    step: int
    """Number of the phase's steps that are in it."""


@frozen
class BadStep:
    """A step that was left out, since its loss or its gradient isn't a finite number."""

    planned: PhasePlan
    step: int
    """Number of the step, from 1."""
    reason: str


@frozen
class LossSpike:
    """A step whose loss was far above those before it."""

    planned: PhasePlan
    step: int
    loss: float
    mean: float
    """Exponential mean of the losses so far."""


@frozen
class Validated:
    """Measurement of a phase's own loss on held-out text."""

    planned: PhasePlan
    step: int
    """Number of the phase's steps that were taken before."""
    loss: float
    """Loss in nats a token."""


@frozen
class PhaseDone:
    """End of a phase, whose weights are on disk."""

    planned: PhasePlan
    result: PhaseResult


@frozen
class EvaluationProgress:
    """Progress of the evaluation: validation sequences were measured."""

    done: int
    total: int


@frozen
class RunResult:
    """A finished run."""

    directory: Path
    phases: tuple[PhaseResult, ...]
    routes: tuple[BandRoute, ...]
    likelihoods: tuple[Likelihood, ...]
    """Likelihoods by depth, the whole rack's last; empty without a validation split."""
    keeps_weights: bool = True


@frozen
class RunDone:
    """End of a run: all phases ended, and the rack was evaluated."""

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
