"""Checkpoints within a phase: all that its next step depends on, in safetensors and JSON.

What a step draws is a function of the run's seed and its number, so that no generator has a state to be kept.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch
from attrs import define, evolve, field
from cattrs import structure, unstructure
from cattrs.errors import BaseValidationError
from torch import Tensor

from stackwise_core.config.model import CheckpointConfig
from stackwise_core.engine.loop.phase_state import PhaseState
from stackwise_core.engine.loop.streamed_step import StreamedStep
from stackwise_core.engine.loop.training_step import TrainingStep
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.metrics import Metrics

LOSSES = "losses"


@define
class Checkpoints:
    """Checkpoints of one phase.

    Args:
        phase: its place in the plan.
        metrics: cut back, when a run resumes, to what they were at the checkpoint.
        begun: how long these were when the phase began, in bytes.
    """

    directory: RunDirectory
    metrics: Metrics
    config: CheckpointConfig
    phase: int
    begun: int
    _damaged: list[str] = field(factory=list, init=False)
    """Names of those that aren't whole."""
    _last: str | None = field(default=None, init=False)
    """Name of the last one that was written."""
    _written: float = field(factory=lambda: time.monotonic(), init=False)

    def is_due(self, step: int) -> bool:
        """Return whether to write one after so many steps."""
        if self.config.steps is not None and step % self.config.steps == 0:
            return True
        return time.monotonic() - self._written >= 60 * self.config.minutes

    @property
    def was_streamed(self) -> bool | None:
        """Whether the newest one that can be read is of a phase that was streamed; None where there is none."""
        for name in reversed(self.directory.checkpoints()):
            with suppress(StackwiseError):
                said, _ = self.directory.read_checkpoint(name)
                return isinstance(said, dict) and "entries" in said
        return None

    def write(self, state: PhaseState, losses: list[float], step: TrainingStep | StreamedStep) -> None:
        """Write one, and delete all but as many as the step keeps; the last one isn't written again."""
        self._written, name = time.monotonic(), _name(self.phase, state.step)
        if name == self._last:
            return
        said = {"phase": self.phase, "state": unstructure(state), "metrics": self.metrics.settle()}
        with self.directory.together():
            older = [each for each in self.directory.checkpoints() if each not in (name, *self._damaged)]
            step.save(self.directory, name, said, {LOSSES: torch.tensor(losses, dtype=torch.float64)})
            for each in (*older[: 1 - step.checkpoints_kept or None], *self._damaged):
                if each != name:
                    self.directory.drop_checkpoint(each)
        step.saved(self.directory, name)
        self._damaged.clear()
        self._written, self._last = time.monotonic(), name

    def restore(
        self, state: PhaseState, step: TrainingStep | StreamedStep
    ) -> tuple[PhaseState, list[float], list[str]]:
        """Put a step back to the newest checkpoint that is whole.

        Args:
            state: of the phase at its beginning.

        Returns:
            The phase's state, the losses of its steps, and what was wrong with checkpoints that aren't whole.

        Raises:
            StackwiseError: a checkpoint is whole, but of another shape than what trains now.
        """
        damaged: list[str] = []
        for name in reversed(self.directory.checkpoints()):
            try:
                said, tensors = self.directory.read_checkpoint(name)
                found = _parse(said, tensors, self.phase, name)
                for entry in said.get("entries", ()):
                    self.directory.checked_checkpoint_entry(name, entry)
            except StackwiseError as error:
                self._damaged.append(name)
                damaged.append(str(error))
                continue
            step.restore(self.directory, name, said, tensors)
            self.metrics.cut_back(said["metrics"])
            plateau = evolve(found.plateau, patience=state.plateau.patience)
            return evolve(found, plateau=plateau), tensors[LOSSES].tolist(), damaged
        self.metrics.cut_back(self.begun)
        return state, [], damaged


def _name(phase: int, step: int) -> str:
    """Return a checkpoint's name; names sort in the order in which they are written."""
    return f"{phase:04d}-{step:09d}"


def _parse(said: Any, tensors: dict[str, Tensor], phase: int, name: str) -> PhaseState:
    """Return the state that a checkpoint tells.

    Raises:
        StackwiseError: it isn't one of this phase, or says what can't be.
    """
    try:
        state, losses, course = structure(said["state"], PhaseState), tensors[LOSSES], said["state"]["course"]
        possible = (
            said["phase"] == phase
            and type(said["metrics"]) is int
            and said["metrics"] >= 0
            and isinstance(said["optimizer"], dict)
            and all(type(entry) is str for entry in said.get("entries", ()))
            and (losses.dtype, losses.shape) == (torch.float64, (state.step - state.bad,))
            and course["variance"] >= 0
            and course["steps"] >= 0
        )
        if possible:
            return state
    except (LookupError, TypeError, ValueError, BaseValidationError):
        """Said below."""
    raise StackwiseError(f"checkpoint {name}: not one of this phase")
