"""The course of a phase's loss, and what stands out of it."""

from __future__ import annotations

import math

from attrs import define

KEPT = 0.98
"""Share of mean and variance that each step keeps: some 50 steps count."""
SETTLED = 50
"""Steps before which nothing is said."""
DEVIATIONS = 6.0
"""Standard deviations over the mean that make a spike. A draw's loss varies much with its mask fraction."""


@define
class LossCourse:
    """Exponential mean and variance of a loss; a spike adds a bounded part to them, so that the next one shows, too."""

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def spikes(self, loss: float) -> bool:
        """Add a finite loss, and return whether it is a spike."""
        deviation = math.sqrt(self.variance)
        spike = self.steps >= SETTLED and loss > self.mean + DEVIATIONS * deviation
        taken = self.mean + DEVIATIONS * deviation if spike else loss
        # In the beginning all steps count alike.
        share = max(1 - KEPT, 1 / (self.steps + 1))
        difference = taken - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
        self.steps += 1
        return spike
