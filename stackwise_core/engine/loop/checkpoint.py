"""Checkpoints within a phase: all that its next step depends on, in safetensors and JSON.

What a step draws is a function of the run's seed and its number, so that no generator has a state to be kept.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from attrs import define, evolve, field
from cattrs import structure, unstructure
from cattrs.errors import BaseValidationError
from torch import Tensor

from stackwise_core.config.model import CheckpointConfig
from stackwise_core.engine.loop.optimizer_state import check_optimizer_state, load_optimizer_state, optimizer_state
from stackwise_core.engine.loop.phase_state import PhaseState
from stackwise_core.engine.rack.residency import Residency
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.optimizer import Optimizer
from stackwise_core.run_files.metrics import Metrics

KEPT = 2
"""Largest number of checkpoints: should the newest be damaged, there is another."""

RACK, OPTIMIZER, LOSSES = "rack.", "optimizer.", "losses"


@define
class Checkpoints:
    """Checkpoints of one phase.

    Args:
        phase: its place in the plan.
        metrics: cut back, when a run resumes, to what they were at the checkpoint.
        begun: how long these were when the phase began, in bytes.
        optimizer: checks what a checkpoint has of its state.
    """

    directory: RunDirectory
    metrics: Metrics
    config: CheckpointConfig
    phase: int
    begun: int
    optimizer: Optimizer
    _damaged: list[str] = field(factory=list, init=False)
    """Names of those that aren't whole."""
    _written: float = field(factory=lambda: time.monotonic(), init=False)

    def is_due(self, step: int) -> bool:
        """Return whether to write one after so many steps."""
        if self.config.steps is not None and step % self.config.steps == 0:
            return True
        return time.monotonic() - self._written >= 60 * self.config.minutes

    def write(
        self,
        state: PhaseState,
        losses: list[float],
        residency: Residency,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Write one, and delete all but the last two."""
        tensors, numbers = optimizer_state(optimizer)
        said = {
            "phase": self.phase,
            "state": unstructure(state),
            "optimizer": numbers,
            "scaler": None if scaler is None else scaler.state_dict(),
            "metrics": self.metrics.settle(),
        }
        everything = {RACK + name: tensor for name, tensor in residency.training_state().items()}
        everything |= {OPTIMIZER + name: tensor for name, tensor in tensors.items()}
        everything[LOSSES] = torch.tensor(losses, dtype=torch.float64)
        with self.directory.together():
            name = _name(self.phase, state.step)
            older = [each for each in self.directory.checkpoints() if each not in (name, *self._damaged)]
            self.directory.write_checkpoint(name, said, everything)
            for each in (*older[: 1 - KEPT], *self._damaged):
                if each != name:
                    self.directory.drop_checkpoint(each)
        self._damaged.clear()
        self._written = time.monotonic()

    def restore(
        self,
        state: PhaseState,
        residency: Residency,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ) -> tuple[PhaseState, list[float], list[str]]:
        """Put rack, optimizer and scaler back to the newest checkpoint that is whole; ``state`` where there is none.

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
            except StackwiseError as error:
                self._damaged.append(name)
                damaged.append(str(error))
                continue
            check_optimizer_state(self.optimizer, optimizer, _under(OPTIMIZER, tensors), said["optimizer"])
            _check_scaler(said["scaler"], scaler)
            residency.load_training_state(_under(RACK, tensors))
            load_optimizer_state(optimizer, _under(OPTIMIZER, tensors), said["optimizer"])
            if scaler is not None:
                scaler.load_state_dict(said["scaler"])
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
            and (losses.dtype, losses.shape) == (torch.float64, (state.step - state.bad,))
            and course["variance"] >= 0
            and course["steps"] >= 0
        )
        if possible:
            return state
    except (LookupError, TypeError, ValueError, BaseValidationError):
        """Said below."""
    raise StackwiseError(f"checkpoint {name}: not one of this phase")


def _check_scaler(said: Any, scaler: torch.amp.GradScaler | None) -> None:
    """Refuse what can't be a loss scaler's state, or is that of one where there is none.

    Raises:
        StackwiseError: it is so.
    """
    expected = None if scaler is None else scaler.state_dict()
    if isinstance(said, dict) and expected is not None:
        kinds = {key: type(value) for key, value in expected.items()}
        if {key: type(value) for key, value in said.items()} == kinds:
            return
    elif said is expected is None:
        return
    raise StackwiseError("a checkpoint's loss scaler isn't that of what trains now")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
