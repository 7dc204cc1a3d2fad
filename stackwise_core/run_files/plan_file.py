"""plan.json: the phases of a run, how the finished rack is used, and what was estimated before it began."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.run_files.records import KeyPath, as_json, inline, read_record, refuse
from stackwise_core.words import shown


@frozen(kw_only=True)
class RackRecord:
    """The rack in plan.json."""

    spec: RackSpec = inline()
    """The rack's shape."""
    parameters: int
    """Number of its weights."""


@frozen(kw_only=True)
class MemoryRecord:
    """Estimated memory of a phase, in bytes, at the moment when it needs most: of the device, or of a CPU all of it."""

    process: int
    """On a CPU, bytes that the process holds already, and that its first step loads; else workspaces of libraries."""
    weights: int
    """Bytes of weights."""
    gradients: int
    """Bytes of gradients."""
    optimizer: int
    """Bytes of the optimizer's state."""
    activations: int
    """Bytes of activations."""
    boundaries: int
    """Bytes of boundaries in memory."""
    total: int
    """Their sum."""


@frozen(kw_only=True)
class HostMemoryRecord:
    """Estimated host memory of a phase, in bytes, beside a device that has its own."""

    process: int
    """Bytes that the process holds already."""
    offloaded: int
    """Bytes of page-locked buffers in which training state waits, or that a disk is read to."""
    boundaries: int
    """Bytes of a window of boundaries, and of a cache in memory."""
    reading: int
    """Bytes of weights in full precision while they are read, drawn or written."""
    total: int
    """Their sum."""


@frozen(kw_only=True)
class BoundaryRecord:
    """Costs of each way of having a phase's boundary."""

    resident: int
    """Peak memory in bytes with all of the trunk in memory."""
    streamed: int
    """Peak memory in bytes with one stack of the trunk at a time."""
    bytes: int
    """Bytes of all its activations."""
    cached: float
    """Floating-point operations of making it once a draw."""
    recomputed: float
    """Floating-point operations of making it for every window anew."""
    cached_seconds: float | None = None
    """Estimated time of the first way, with what is stored and read, in seconds; null where that wasn't measured."""
    recomputed_seconds: float | None = None
    """Estimated time of the second way."""


@frozen(kw_only=True)
class PhaseRecord:
    """A phase in plan.json, with its costs."""

    phase: Phase = inline()
    """The phase; its ``steps`` are those below."""
    entry: str
    """``tokens``, or the boundary that its steps begin at."""
    steps: int
    """Optimizer steps that are planned."""
    tokens: int
    """Tokens that its steps pass, in all."""
    trainable_parameters: int
    """Number of weights that train."""
    frozen_parameters: int
    """Number of weights that it uses and leaves alone."""
    band: tuple[float, float] | None
    """Mask fractions at the two ends of its progress; null where nothing is masked."""
    memory: MemoryRecord
    """Estimated memory of the device, by part, in bytes; on a CPU all memory."""
    host: HostMemoryRecord | None = None
    """Estimated host memory, by part, in bytes; null on a CPU."""
    disk: int
    """Most bytes of boundaries on disk."""
    run_files: int = 0
    """Most bytes of weights and checkpoints in the run's directory."""
    streams: bool
    """Whether only one stack of its trunk is in memory at a time."""
    schedule: tuple[int, int] | None = None
    """Place of its first step in the learning-rate schedule, and the steps of that."""
    rates: tuple[tuple[int, float], ...] = ()
    """Learning rate of the stacks, or of adapters where these train alone, at steps of the phase (from 0) between which
    it is a line."""
    offload: str | None = None
    """Place where the training state of its stacks waits, one of which is in memory at a time: memory or disk; null
    where all of them are in memory."""
    offloaded: int = 0
    """Bytes that wait there."""
    compiled: bool = False
    """Whether blocks run compiled, where precision and adapters can be."""
    recomputed: bool = False
    """Whether its boundary is made anew for every window, though a cache could keep it."""
    flops: float
    """Floating-point operations of its steps and of its boundaries."""
    seconds: float
    """Estimated time, in seconds."""
    boundary: BoundaryRecord | None
    """Costs of its boundary; null where it begins at the tokens."""


@frozen(kw_only=True)
class SpeedRecord:
    """Measured speed of the device."""

    operations: float
    """Floating-point operations a second, in matrix products."""
    copied: float
    """Bytes copied a second."""


@frozen(kw_only=True)
class PlanFile:
    """The content of plan.json."""

    rack: RackRecord
    """The rack."""
    tokenizer: str
    """Fingerprint of the tokenizer, in hexadecimal."""
    corpus: str
    """Fingerprint of the text and of how it was cut, in hexadecimal."""
    routes: tuple[BandRoute, ...]
    """Routes of the finished rack: each a path, and the band of mask fractions that it serves."""
    exits: tuple[int, ...]
    """Stacks that the head was trained to read at, with nothing below them that changed since."""
    streams: bool = False
    """Whether only one stack is in memory at a time where a text passes the whole rack."""
    notes: tuple[str, ...] = ()
    """Notes for the user before starting."""
    speed: SpeedRecord | None = None
    """Speed of the machine that planned."""
    phases: tuple[PhaseRecord, ...]
    """The phases, in order."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's content as JSON values."""
        content: dict[str, Any] = as_json(self)
        return content

    @classmethod
    def from_json(cls, content: object, file: Path) -> PlanFile:
        """Read the file's content from JSON values.

        Args:
            file: its path, for messages.

        Raises:
            StackwiseError: it isn't what a run writes, with the first key that is wrong.
        """
        plan = read_record(cls, content, file)
        for where, expected, value in chain(_rack_faults(plan.rack.spec), plan._use_faults()):
            refuse(file, where, expected, shown(value))
        return plan

    def _use_faults(self) -> Iterator[tuple[KeyPath, str, object]]:
        """Yield what no finished rack can be used by: key, what was expected, and the value."""
        stacks = range(len(self.rack.spec.blocks))
        if any(stack < 0 for stack in self.exits):
            yield ("exits",), "whole numbers of 0 or more", self.exits
        if not self.routes:
            yield ("routes",), "one route or more", self.routes
        for place, route in enumerate(self.routes):
            if not route.path or not set(route.path) <= set(stacks):
                yield ("routes", place, "path"), f"stacks of 0 to {stacks[-1]}", route.path
        bands = {("routes", place): route.band for place, route in enumerate(self.routes)}
        bands |= {("phases", place): phase.band for place, phase in enumerate(self.phases) if phase.band is not None}
        for where, band in bands.items():
            if not _are_fractions(band):
                yield (*where, "band"), "fractions of 0 to 1", band


_SIZES = ("vocab_size", "seq_len", "d_model", "n_heads", "n_kv_heads", "d_ff")


def _rack_faults(spec: RackSpec) -> Iterator[tuple[KeyPath, str, object]]:
    """Yield what no rack's shape can be: key, what was expected, and the value."""
    if not spec.blocks or min(spec.blocks) < 1:
        yield ("rack", "blocks"), "whole numbers of 1 or more", spec.blocks
    for name in _SIZES:
        if getattr(spec, name) < 1:
            yield ("rack", name), "1 or more", getattr(spec, name)
    for name, whole in (("n_heads", "d_model"), ("n_kv_heads", "n_heads")):
        if getattr(spec, whole) % getattr(spec, name):
            yield ("rack", name), f"a divisor of {whole}, {getattr(spec, whole)}", getattr(spec, name)
    for name in ("rope_theta", "norm_eps", "init_std"):
        if not isfinite(getattr(spec, name)):
            yield ("rack", name), "a finite number", getattr(spec, name)
    if not _are_fractions(spec.time_fractions):
        yield ("rack", "time_fractions"), "fractions of 0 to 1", spec.time_fractions


def _are_fractions(values: tuple[float, ...]) -> bool:
    return all(0 <= value <= 1 for value in values)
