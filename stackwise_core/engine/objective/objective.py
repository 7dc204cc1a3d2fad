"""The loss of a phase: its objective, under the weight that a masked token's cross entropy has.

With progress s uniform on [a, b] and mask fraction f(s), a sequence of L scored tokens has under ``nelbo`` the loss

    (b - a) |f'(s)| / f(s) * sum over masked i of CE_i / L,

whose expectation is the negative evidence lower bound, in nats a token, of the band of mask fractions [f(a), f(b)]
(MDLM, arXiv 2406.07524, eq. 10, for f(s) = s; a change of variables gives it for any monotone f). Adjoining bands add
up. ``mean`` is the mean over all predicted tokens of the step (BERT, arXiv 1810.04805).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.objective import Objective, Predicted, Weighting


@frozen
class PhaseLoss:
    """An objective as a phase has it."""

    objective: Objective
    noise: Noise
    weighting: Weighting
    stretch: tuple[float, float]

    def predicted(self, draws: Draws) -> Predicted:
        """Return what a forward pass predicts, with the phase's weights."""
        weights = torch.ones_like(draws.progress)
        if self.weighting == "nelbo":
            weights = self.noise.weights(draws.progress, self.stretch)
        return Predicted(
            targets=draws.targets,
            sequences=draws.rows,
            places=draws.masked % draws.inputs.shape[1],
            fractions=draws.fraction[draws.rows],
            weighting=self.weighting,
            weights=weights[draws.rows],
            scored=draws.scored,
        )

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each predicted token [N] under logits [N, V].

        Raises:
            ContractError: the objective gave something else.
        """
        losses = self.objective.losses(logits, targets)
        self._check(losses, "losses()", len(targets))
        return losses

    def weights(self, predicted: Predicted) -> Tensor:
        """Return the weights [N] of predicted tokens' losses, on the CPU.

        Raises:
            ContractError: the objective gave something else.
        """
        weights = self.objective.weights(predicted)
        self._check(weights, "weights()", len(predicted.targets))
        return weights

    def weighted_sum(self, losses: Tensor, predicted: Predicted) -> Tensor:
        """Return the sum over predicted tokens [N] of weight times loss."""
        return (self.weights(predicted).to(losses) * losses).sum()

    def normaliser(self, step: Sequence[Predicted]) -> float:
        """Return what the weighted sum of a whole optimizer step is divided by, however many passes it takes."""
        return sum(self.objective.count(predicted) for predicted in step)

    def _check(self, given: object, method: str, count: int) -> None:
        if not isinstance(given, Tensor) or tuple(given.shape) != (count,):
            found = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ContractError(
                self.objective, f"{method} gave {found}, expected one number for each of {count} predicted tokens"
            )
