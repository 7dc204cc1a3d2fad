"""The masked-diffusion loss: which weight a masked token's cross entropy has.

With progress s uniform on [a, b] and mask fraction f(s), a sequence of L scored tokens has the loss

    (b - a) |f'(s)| / f(s) * sum over masked i of CE_i / L,

whose expectation is the negative evidence lower bound, in nats a token, of the band of mask fractions [f(a), f(b)]
(MDLM, arXiv 2406.07524, eq. 10, for f(s) = s; a change of variables gives it for any monotone f). Adjoining bands add
up.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.data.draws import Draws
from stackwise_core.data.noise import Noise


@frozen
class Objective:
    """The loss of a phase.

    ``nelbo`` is the bound above; ``mean`` is the mean over all masked tokens of the step (BERT, arXiv 1810.04805).
    """

    noise: Noise
    weighting: Literal["nelbo", "mean"]
    stretch: tuple[float, float]

    def weights(self, draws: Draws) -> Tensor:
        """What each sequence's masked tokens weigh, float64 [B]."""
        if self.weighting == "mean":
            return torch.ones_like(draws.progress)
        return self.noise.weights(draws.progress, self.stretch)

    def normaliser(self, step: list[Draws]) -> int:
        """What the weighted sum of a whole optimizer step is divided by, however many forward passes it takes."""
        if self.weighting == "mean":
            return sum(len(draws.masked) for draws in step)
        return sum(draws.scored for draws in step)

    def weighted_sum(self, cross_entropies: Tensor, draws: Draws) -> Tensor:
        """The sum over masked tokens [N] of weight times cross entropy."""
        weights = self.weights(draws).to(cross_entropies)
        return (weights[draws.rows.to(cross_entropies.device)] * cross_entropies).sum()
