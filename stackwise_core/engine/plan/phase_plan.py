"""A phase and what it costs, estimated before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import evolve, frozen

from stackwise_core.engine.estimates.disk_estimate import held_bytes, run_bytes, store_bytes
from stackwise_core.engine.estimates.flops import boundary_flops, step_flops
from stackwise_core.engine.estimates.host_estimate import HostMemory, host_memory, reading_ahead, waiting_in_memory
from stackwise_core.engine.estimates.memory_estimate import Memory, offloaded_bytes, phase_memory
from stackwise_core.engine.estimates.parameter_count import adapter_sizes, trainable_parameters, used_parameters
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of, made_from_below, same_boundary
from stackwise_core.engine.phases.phase_steps import phase_steps, sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.residency import OffloadTo, can_be_streamed, offload_to, streams_trunk
from stackwise_core.interfaces.phase import Phase


@frozen
class Prices:
    """Costs of each way of having a boundary."""

    resident: int
    """Peak memory in bytes with all of the trunk in memory."""
    streamed: int
    """Peak memory in bytes with one stack of it at a time."""
    bytes: int
    """Bytes of all its activations, in the format of the cache, or bf16 without one."""
    cached: float
    """Floating-point operations of making it once a draw, and from the one below where that is there."""
    recomputed: float
    """Floating-point operations of making it for every window anew."""
    cached_seconds: float | None = None
    """Time of the first way, with what is stored and read; None where that wasn't worth measuring."""
    recomputed_seconds: float | None = None
    """Time of the second way."""


@frozen
class PhasePlan:
    """A phase, and what it costs."""

    phase: Phase
    steps: int
    least_steps: int
    """Steps that it takes before any plateau ends it: a share of its own, whatever others pass on to it."""
    tokens: int
    """Tokens that training steps pass, in all."""
    trainable_parameters: int
    frozen_parameters: int
    band: tuple[float, float] | None
    """Mask fractions at the two ends of its progress; None where nothing is masked."""
    memory: Memory
    """Memory of the device, which is the host's on a CPU."""
    host: HostMemory | None
    """Host memory; None on a CPU."""
    disk: int
    """Most bytes of boundaries on disk, those before it that are kept included."""
    run_files: int
    """Most bytes of weights and checkpoints in the run's directory."""
    streams: bool
    """Whether only one stack of its trunk is in memory at a time."""
    offload: OffloadTo | None
    """Where the training state of its stacks waits, one of which is in memory at a time; None: all of them are."""
    offloaded: int
    """Bytes that wait there."""
    least: int
    """Peak memory in bytes with one stack at a time, frozen or training."""
    made_from_below: bool
    """Whether its boundaries are made from those of the phase before."""
    same_boundary: bool
    """Whether its boundaries are those of the phase before."""
    step_flops: float
    """Floating-point operations of training steps."""
    flops: float
    """The same with those of boundaries."""
    boundary: Prices | None
    """Costs of its boundary; None where it starts at the tokens."""
    schedule: tuple[int, int]
    """Place of its first step in the learning-rate schedule, and the steps of that."""
    recomputed: bool = False
    """Whether its boundary is made anew for every window, though a cache could keep it."""
    rates: tuple[tuple[int, float], ...] = ()
    """Learning rate of the stacks, or of adapters where these train alone, at steps of the phase (from 0) between which
    it is a line."""
    compiles: bool = False
    """Whether blocks run compiled, where precision and adapters can be."""
    seconds: float = 0.0
    """Time that it will take on this machine, very roughly."""

    @property
    def on_disk(self) -> int:
        """Most bytes on disk: boundaries, training state that waits there, weights and checkpoints."""
        return self.disk + self.state_on_disk + self.run_files

    @property
    def state_on_disk(self) -> int:
        """Most bytes of training state on disk: a checkpoint's, and as much that has changed since."""
        return 2 * self.offloaded if self.offload == "disk" else 0


def price(phase: Phase, before: Sequence[Phase], setup: Setup) -> PhasePlan:
    """Estimate what a phase costs, after those before it."""
    below = before[-1] if before else None
    spec, order = setup.spec, sample_order(setup)
    steps = phase_steps(phase, order)
    tokens = round(steps / order.steps_per_epoch() * len(setup.corpus.train)) * spec.seq_len
    trainable = trainable_parameters(phase, setup)
    on_stacks = adapter_sizes({pair for each in (*before, phase) for pair in each.adapters}, setup)

    cache = cache_of(phase, setup)
    stored = held_bytes(phase, before, setup)
    durable = cache is not None and cache.durable
    in_memory = 0 if durable else stored
    if cache is not None and phase.frozen_prefix:
        in_memory += cache.buffer_bytes(boundary_layout(phase, setup))
    resident, streamed = (
        phase_memory(phase, on_stacks, trainable, in_memory, setup, streams=streams) for streams in (False, True)
    )
    streams = bool(phase.frozen_prefix) and streams_trunk(resident, setup)
    waits, on_cpu = offloaded_bytes(phase, on_stacks, setup), setup.device.type == "cpu"
    locked = waits if on_cpu else waiting_in_memory(phase, on_stacks, setup)
    offload = offload_to(phase, streamed if streams else resident, locked, setup)
    one_at_a_time = streamed
    if len(phase.live_path) > 1 and can_be_streamed(phase, setup):
        one_at_a_time = phase_memory(phase, on_stacks, trainable, in_memory, setup, streams=True, offloads=True)
    if offload is not None:
        streams = bool(phase.frozen_prefix)
    if offload == "disk" and not on_cpu:
        locked = reading_ahead(phase, on_stacks, setup)
    chosen = one_at_a_time if offload is not None else streamed if streams else resident
    training = step_flops(phase, on_stacks, tokens, setup, offloads=offload is not None)
    cached, recomputed = (boundary_flops(phase, before, on_stacks, setup, cached=cached) for cached in (True, False))
    return PhasePlan(
        phase=phase,
        steps=steps,
        least_steps=math.ceil(phase.least * steps),
        tokens=tokens,
        trainable_parameters=trainable,
        frozen_parameters=used_parameters(phase, on_stacks, spec) - trainable,
        band=None if setup.implementations.objective.options.causal else setup.noise.band(phase.progress),
        memory=chosen if offload != "memory" or not on_cpu else _with(chosen, waits),
        host=None if on_cpu else host_memory(phase, on_stacks, in_memory, setup, locked if offload is not None else 0),
        disk=stored if durable else 0,
        run_files=run_bytes(phase, before, on_stacks, setup, offload),
        streams=streams,
        offload=offload,
        offloaded=waits if offload is not None else 0,
        least=one_at_a_time.total,
        made_from_below=made_from_below(phase, before, setup),
        same_boundary=same_boundary(phase, below, setup),
        step_flops=training,
        flops=training + (recomputed if cache is None else cached),
        boundary=Prices(resident.total, streamed.total, store_bytes((*before, phase), setup), cached, recomputed)
        if phase.frozen_prefix
        else None,
        schedule=(0, steps),
        recomputed=phase.name in setup.recomputed,
    )


def _with(memory: Memory, offloaded: int) -> Memory:
    """Count what waits in host memory, too: a CPU has no other."""
    return evolve(memory, boundaries=memory.boundaries + offloaded)
