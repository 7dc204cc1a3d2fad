"""A phase's own loss on held-out text while it trains, and the plateau at which it may end early."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import define, frozen

from stackwise_core.engine.draws.draws import Drawer
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.not_finite import refuse_not_finite


@frozen
class Validation:
    """The loss of a phase over validation sequences, under the same masks each time, so that values compare."""

    drawer: Drawer
    """Drawer of the validation split."""
    objective: PhaseLoss
    every: int
    """Optimizer steps between two validations."""
    sequences: int | None
    """Number of sequences to use, evenly spaced; None: all."""
    batch_size: int

    def is_due(self, step: int) -> bool:
        """Return whether to validate after so many steps."""
        return step % self.every == 0

    @torch.no_grad()
    def loss(self, forward: Forward, path: Sequence[int]) -> float:
        """Compute nats a token at the exit of a path, from the tokens on.

        Raises:
            StackwiseError: it isn't a finite number.
        """
        samples = self.drawer.split.evenly_spaced(self.sequences)
        batches = [
            self.drawer.draw(samples[at : at + self.batch_size], 0) for at in range(0, len(samples), self.batch_size)
        ]
        predicted = [self.objective.predicted(draws) for draws in batches]
        total = 0.0
        for at_exit in forward.sweep(batches, path, path[-1:], self.objective.losses):
            what = "the held-out text has no loss"
            refuse_not_finite(at_exit.losses, forward, path, at_exit.draws, what)
            total += self.objective.weighted_sum(at_exit.losses, predicted[at_exit.batch]).item()
        return total / self.objective.normaliser(predicted)


@define
class Plateau:
    """Detector of a loss that has stopped getting better; without a patience it never has."""

    patience: int | None = None
    best: float | None = None
    """Lowest loss of the validations so far."""
    without_gain: int = 0

    def reached(self, loss: float) -> bool:
        """Add a validation's loss, and return whether it was one too many without a new best."""
        better = self.best is None or loss < self.best
        self.without_gain = 0 if better else self.without_gain + 1
        self.best = loss if better else self.best
        return self.patience is not None and self.without_gain >= self.patience
