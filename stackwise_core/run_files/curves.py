"""Measurements by step as they are drawn: on one axis for all phases, smoothed, and thinned without losing extremes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from attrs import Factory, define

MOST_POINTS = 2000
"""Points of a curve that is drawn."""


@define
class Curve:
    """Values by step within a phase, in the order in which they were written."""

    steps: array[float] = Factory(lambda: array("d"))
    values: array[float] = Factory(lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        """Add a point."""
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)

    def smoothed(self) -> Curve:
        """Return each value replaced by the mean of those around it: a tenth of the curve, less towards its ends."""
        values, places = np.asarray(self.values), np.arange(len(self))
        sums = np.concatenate([[0.0], np.cumsum(values)])
        widest = max(1, len(self) // 20)
        # At the steep beginning only as far to the right as to the left, nearly: it would else be pulled down.
        reach = np.clip(places, widest // 4, widest)
        low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(self))
        return Curve(self.steps, array("d", (sums[high] - sums[low]) / (high - low)))

    def thinned(self, most: int = MOST_POINTS) -> Curve:
        """Return a curve of at most ``most`` points: the lowest and highest of each stretch, and both ends."""
        if len(self) <= most:
            return self
        values = np.asarray(self.values)
        edges = np.linspace(0, len(values), (most - 2) // 2 + 1).astype(int)
        kept = {0, len(values) - 1}
        for begin, end in pairwise(edges.tolist()):
            kept |= {begin + int(values[begin:end].argmin()), begin + int(values[begin:end].argmax())}
        places = sorted(kept)
        return Curve(array("d", (self.steps[each] for each in places)), array("d", values[places]))

    def moved(self, by: float) -> Curve:
        """Return the curve shifted by ``by`` steps."""
        return Curve(array("d", (step + by for step in self.steps)), self.values)

    def points(self) -> Iterator[tuple[float, float]]:
        """Step and value of each point."""
        yield from zip(self.steps, self.values, strict=True)
