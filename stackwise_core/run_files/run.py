"""A run in the shape in which a page shows it. Whatever isn't known is None or empty."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from attrs import Factory, define, fields, frozen

from stackwise_core.run_files.curves import Curve
from stackwise_core.run_files.files import whole
from stackwise_core.run_files.plan_file import MemoryRecord

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "masked", "peak_bytes")
"""Values of a ``step`` line that are drawn."""
COUNTS = ("wanted", "found", "computed", "read", "repeated", "evicted", "damaged")
"""Names of the counts of a phase's boundaries."""
MEMORY = tuple(field.name for field in fields(MemoryRecord) if field.name != "total")
"""The parts of a planned memory."""


@define
class Phase:
    """A phase: its plan and its results."""

    name: str
    done: bool = False
    steps: int = 0
    """Optimizer steps taken."""
    begins: int = 0
    """Steps of the phases before it."""
    planned_steps: int | None = None
    planned_tokens: int | None = None
    entry: str | None = None
    trains: tuple[int, ...] = ()
    adapts: tuple[tuple[int, str], ...] = ()
    embedding: bool = False
    head: bool = False
    trainable_parameters: int | None = None
    frozen_parameters: int | None = None
    band: tuple[float, float] | None = None
    masks: str | None = None
    weighting: str | None = None
    planned_memory: dict[str, int] = Factory(dict)
    planned_peak: int | None = None
    planned_host: int | None = None
    """Host memory beside a device that has its own."""
    planned_disk: int | None = None
    planned_rates: Curve = Factory(Curve)
    """Learning rate by step of the phase, as planned."""
    seconds: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    stopped_early: bool = False
    passed_on: int = 0
    bad_steps: int = 0
    loss_spikes: int = 0
    boundaries: dict[str, int] = Factory(dict)
    curves: dict[str, Curve] = Factory(lambda: defaultdict(Curve))

    @property
    def tokens(self) -> int | None:
        """Tokens that its steps so far have processed."""
        if self.planned_tokens is None or not self.planned_steps:
            return None
        return round(self.planned_tokens * self.steps / self.planned_steps)


@frozen
class Band:
    """The part of a bound that an interval of mask fractions contributes."""

    low: float
    high: float
    nats_per_token: float
    standard_error: float | None


def perplexity(nats_per_token: float) -> float:
    """Return the perplexity a token; infinite where it is more than a float holds."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


@frozen
class Likelihood:
    """The bound at one depth."""

    depth: int
    nats_per_token: float
    standard_error: float | None
    bits_per_byte: float | None
    tokens: int | None
    bands: tuple[Band, ...]

    @property
    def perplexity(self) -> float:
        """A bound on the perplexity a token."""
        return perplexity(self.nats_per_token)


@define
class Run:
    """A run, finished or not."""

    path: Path
    label: str
    """Name of the run on pages, different for each of several."""
    name: str
    finished: bool
    gaps: list[str]
    phases: list[Phase]
    likelihoods: list[Likelihood]
    """Likelihoods by depth, the whole rack's last."""
    routes: list[tuple[int, ...]]
    rack: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    notes: list[str]
    corpus: str | None = None
    """Fingerprint of the text and of how it was cut into tokens and sequences."""

    @property
    def causal(self) -> bool:
        """Whether the objective is causal: nothing is masked, and the likelihood is exact, not a bound."""
        bands = [phase.band for phase in self.phases]
        return bool(bands) and not any(bands) and not (self.whole and self.whole.bands)

    @property
    def measure(self) -> str:
        """Name of its likelihood."""
        return "NLL" if self.causal else "NELBO"

    @property
    def whole(self) -> Likelihood | None:
        """The likelihood of the whole rack."""
        return self.likelihoods[-1] if self.likelihoods else None

    @property
    def measured_on(self) -> tuple[str | None, int | None]:
        """Fingerprint of the tokens that the likelihoods were measured on; equal for comparable runs."""
        return self.corpus, self.whole.tokens if self.whole else None

    @property
    def steps(self) -> int:
        """Steps of all phases so far."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int | None:
        """Tokens of all phases so far."""
        known = [phase.tokens for phase in self.phases if phase.tokens is not None]
        return sum(known) if known else None

    @property
    def seconds(self) -> float | None:
        """Time taken by the completed phases."""
        known = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(known) if known else None

    @property
    def peak_bytes(self) -> int | None:
        """Most memory of any phase."""
        return max((phase.peak_bytes for phase in self.phases if phase.peak_bytes), default=None)

    @property
    def parameters(self) -> int | None:
        """Number of the whole rack's parameters."""
        return whole(self.rack.get("parameters"))

    @property
    def state(self) -> str:
        """State of the run, in words."""
        done = sum(phase.done for phase in self.phases)
        if self.finished:
            return "finished"
        if done == len(self.phases):
            return "not finished: trained, not measured" if done else "not finished: nothing is recorded yet"
        current = self.phases[done]
        of = "" if current.planned_steps is None else f" of {current.planned_steps}"
        where = f", step {current.steps}{of} of {current.name}" if current.steps else ""
        return f"not finished: {done} of {len(self.phases)} phases done{where}"
