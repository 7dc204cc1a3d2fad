"""Statistics of the activations in a store, and the errors that smaller number formats would make."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.engine.rack.number_range import FINITE
from stackwise_core.interfaces.cache_backend import INT4_GROUP, ActivationStore, Format, Key, Layout, MissingEntries

SMALLER: tuple[Format, ...] = ("int8", "fp8", "int4")
NUMBERS_AT_ONCE = 1 << 23
"""Activations are read and measured in batches of so many numbers."""


@frozen
class ActivationStatistics:
    """Statistics of all tokens that were seen, at every position of their sequences, padding too."""

    rms: float
    """Root mean square of all numbers."""
    largest: float
    """The largest magnitude."""
    outlier: float
    """The largest RMS of a feature over all tokens, as a multiple of the features' mean RMS: an outlier channel's."""
    outlier_feature: int
    """Index of that feature."""
    dimensions: float
    """The participation ratio of the features' covariance, from 1 to d_model: how many directions share the variance.

    (sum of eigenvalues)^2 / sum of squared eigenvalues = tr(C)^2 / ||C||_F^2: Gao et al. 2017, "A theory of
    multineuronal dimensionality, dynamics and measurement" (bioRxiv 214262). Fewer tokens than a few times d_model
    make it too small.
    """
    errors: dict[Format, float]
    """||decoded - x|| / ||x|| over all numbers, for each format that is smaller than the store's own."""


@frozen
class Measured:
    """Measurement of one store's entries."""

    entries: int
    """Number of entries that were read."""
    damaged: int
    """Number of entries that could not be read, with those that the store found damaged when it was opened."""
    bytes: int
    """Size of those that were read."""
    seconds: float
    """Time of reading them, without decoding."""
    statistics: ActivationStatistics | None
    """Statistics of them; None where nothing was read, or zeros only."""


@define
class ActivationMeter:
    """Meter that gathers statistics of activations in the layout of their store, a batch after another."""

    layout: Layout
    _tokens: int = field(default=0, init=False)
    _squares: Tensor = field(init=False)  # [d_model], fp64, as is all that is summed
    _mean: Tensor = field(init=False)  # [d_model]
    _scatter: Tensor = field(init=False)  # [d_model, d_model], about the mean
    _largest: float = field(default=0.0, init=False)
    _lost: dict[Format, float] = field(init=False)

    def __attrs_post_init__(self) -> None:
        size = self.layout.d_model
        self._squares, self._mean = torch.zeros(2, size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)
        self._lost = dict.fromkeys(smaller_formats(self.layout), 0.0)

    def add(self, hidden: Tensor) -> None:
        """Add hidden states fp32 [n, tokens, d_model]."""
        rows = hidden.flatten(0, 1)
        if not len(rows):
            return
        self._squares += rows.square().sum(0, dtype=torch.float64)
        self._largest = max(self._largest, rows.abs().max().item())
        self._add_scatter(rows)
        for name in self._lost:
            if not FINITE.holds(rows):  # no smaller format can hold them
                self._lost[name] = math.inf
                continue
            layout = evolve(self.layout, dtype=name)
            gone = decode(encode(hidden, layout), layout) - hidden
            self._lost[name] += gone.square().sum(dtype=torch.float64).item()

    def _add_scatter(self, rows: Tensor) -> None:
        """Add a batch's scatter about its own mean, as Chan et al. 1979 do, so that no large mean cancels."""
        count, mean = len(rows), rows.mean(0, dtype=torch.float64)
        centred = rows - mean.float()
        apart, total = mean - self._mean, self._tokens + count
        self._scatter += (centred.T @ centred).double()
        self._scatter += torch.outer(apart, apart) * (self._tokens * count / total)
        self._mean += apart * (count / total)
        self._tokens = total

    def result(self) -> ActivationStatistics | None:
        """Return the statistics; None where nothing was taken in, or zeros only."""
        energy = self._squares.sum().item()
        if self._tokens == 0 or energy == 0:
            return None
        by_feature = (self._squares / self._tokens).sqrt()
        trace, norm = self._scatter.trace().item(), self._scatter.square().sum().item()
        return ActivationStatistics(
            rms=(energy / self._tokens / self.layout.d_model) ** 0.5,
            largest=self._largest,
            outlier=(by_feature.max() / by_feature.mean()).item(),
            outlier_feature=int(by_feature.argmax()),
            dimensions=trace**2 / norm if norm else 1.0,
            errors={name: (lost / energy) ** 0.5 for name, lost in self._lost.items()},
        )


def smaller_formats(layout: Layout) -> list[Format]:
    """List the formats in which the entries of a layout would take fewer bytes."""
    fitting = [name for name in SMALLER if name != "int4" or layout.d_model % INT4_GROUP == 0]
    return [name for name in fitting if evolve(layout, dtype=name).bytes_per_entry < layout.bytes_per_entry]


def sample(keys: Sequence[Key], most: int | None) -> Sequence[Key]:
    """Return all of the keys, or so many evenly spaced ones."""
    if most is None or most >= len(keys):
        return keys
    return [keys[place * len(keys) // most] for place in range(most)]


def measure_store(
    store: ActivationStore, layout: Layout, keys: Sequence[Key], advance: Callable[[int], None]
) -> Measured:
    """Read a store's entries and measure them.

    Args:
        advance: called with how many more were read, or found damaged.
    """
    meter = ActivationMeter(layout)
    read, damaged, seconds = 0, store.stats().damaged, 0.0
    size = max(1, NUMBERS_AT_ONCE // (layout.tokens * layout.d_model))
    for first in range(0, len(keys), size):
        batch = keys[first : first + size]
        begun = time.perf_counter()
        entries, lost = read_what_is_whole(store, batch)
        seconds += time.perf_counter() - begun
        if entries is not None:
            meter.add(decode(entries, layout))
        read += len(batch) - lost
        damaged += lost
        advance(len(batch))
    return Measured(read, damaged, read * layout.bytes_per_entry, seconds, meter.result())


def read_what_is_whole(store: ActivationStore, keys: Sequence[Key]) -> tuple[Tensor | None, int]:
    """Return the entries that can be read, None for none, and how many can't."""
    whole = list(keys)
    while whole:
        try:
            return store.get(whole), len(keys) - len(whole)
        except MissingEntries as missing:
            gone = set(missing.keys)
            whole = [key for key in whole if key not in gone]
    return None, len(keys)
