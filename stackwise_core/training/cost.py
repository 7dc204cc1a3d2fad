"""What a phase costs: memory, disk and floating-point operations, estimated before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import psutil
import torch
from attrs import asdict, evolve, frozen

from stackwise_core.interfaces.cache_backend import CacheBackend, Layout
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.rack.allocator import MAPPED_FROM
from stackwise_core.training.optimizer import STATE_BYTES
from stackwise_core.training.order import Order, chunk_size
from stackwise_core.training.setup import Setup

# Measured with tests/benchmarks/plan_memory.py on a CPU; docs/benchmarks/plan_memory.md has the table.
FIRST_STEP = 140_000_000
"""Bytes that a process's first optimizer step adds once, whatever the model: libraries, thread pools, kernels."""
IN_HEAP = 1.4
"""Peak resident bytes for each byte of a tensor that the C library takes from its heap, where freed memory waits for
one that fits; larger ones are mapped by themselves."""

LOADED_FOR = 32_768
"""Tokens that a stack serves each time it is read, from which on the reading doesn't count: reading and hashing take
some 3 ns a weight, and computing takes 2 operations a weight and token, which is 300 times as long at 100 GFLOP/s."""


@frozen
class Memory:
    """Estimated memory, in bytes, at the moment when a phase needs most: a training step, or a window in the trunk."""

    process: int
    """What this process holds already (Python, torch, the libraries behind it) and its first step will load."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    boundaries: int
    """Held in memory: a window's without a cache or while it is made, all of them with a cache in memory."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@frozen
class Prices:
    """What each way of having a boundary costs."""

    resident: int
    """Peak memory in bytes with all of the trunk in memory."""
    streamed: int
    """Peak memory in bytes with one stack of it at a time."""
    bytes: int
    """Of all its activations, in the format of the cache, or bf16 without one."""
    cached: float
    """Floating-point operations of making it once a draw, and from the one below where that is there."""
    recomputed: float
    """Floating-point operations of making it for every window anew."""


@frozen
class PhasePlan:
    """A phase, and what it costs."""

    phase: Phase
    steps: int
    tokens: int
    """Tokens that training steps pass, in all."""
    trainable_parameters: int
    frozen_parameters: int
    band: tuple[float, float] | None
    """Mask fractions at the two ends of its progress; None where nothing is masked."""
    memory: Memory
    disk: int
    """Most bytes of boundaries on disk, those before it that are kept included."""
    streams: bool
    """Whether only one stack of its trunk is in memory at a time."""
    made_from_below: bool
    """Whether its boundaries are made from those of the phase before."""
    same_boundary: bool
    """Whether its boundaries are those of the phase before."""
    flops: float
    """Floating-point operations of training steps and boundaries."""
    boundary: Prices | None
    """None where it starts at the tokens."""


def sample_order(setup: Setup) -> Order:
    """The order in which the training split is visited."""
    training, data = setup.config.training, setup.config.data
    return Order(
        samples=len(setup.corpus.train),
        seq_len=data.seq_len,
        window=setup.window,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation,
        seed=setup.config.run.seed,
    )


def boundary_layout(phase: Phase, setup: Setup) -> Layout:
    """The shape of a phase's boundaries; those held in a window are in fp32."""
    cache = cache_of(phase, setup)
    dtype = "fp32" if cache is None else cache.options.dtype
    return Layout(tokens=setup.config.data.seq_len, d_model=setup.spec.d_model, dtype=dtype)


def first_step(phase: Phase, order: Order) -> int:
    """Where in the stream of steps a phase begins."""
    return int(phase.begins) if phase.steps else order.step_at(phase.begins)


def phase_steps(phase: Phase, order: Order) -> int:
    """Optimizer steps of a phase."""
    return phase.steps or max(1, order.step_at(phase.begins + phase.epochs) - order.step_at(phase.begins))


def phase_epochs(phase: Phase, order: Order) -> float:
    """Passes over the training split that a phase makes."""
    return phase.steps / order.steps_per_epoch() if phase.steps else phase.epochs


def price(phase: Phase, before: Sequence[Phase], setup: Setup) -> PhasePlan:
    """Estimate what a phase costs, after those before it."""
    below = before[-1] if before else None
    spec, order = setup.spec, sample_order(setup)
    steps = phase_steps(phase, order)
    tokens = round(steps / order.steps_per_epoch() * len(setup.corpus.train)) * spec.seq_len
    trainable = sum(spec.stack_parameters(stack) for stack in phase.trains)
    # Of the stacks' exit norms only the last one's trains, and only where its stack does.
    trainable -= spec.d_model * (len(phase.trains) - (phase.exit_norm is not None))
    trainable += spec.embedding_parameters if phase.embedding else 0
    trainable += spec.head_parameters if phase.head else 0
    on_stacks = adapter_sizes({pair for each in (*before, phase) for pair in each.adapters}, setup)
    trainable += sum(adapter_sizes(phase.adapters, setup).values())
    parameters = sum(spec.stack_parameters(stack) + on_stacks.get(stack, 0) for stack in phase.path)
    parameters += _ends_parameters(spec)

    cache = cache_of(phase, setup)
    stored = boundary_bytes(phase, before, setup) if cache is not None else 0
    stored = stored if cache is None or cache.options.capacity is None else min(stored, cache.options.capacity)
    durable = cache is not None and cache.durable
    in_memory = 0 if durable else stored
    if cache is not None and phase.frozen_prefix:
        in_memory += cache.buffer_bytes(boundary_layout(phase, setup))
    resident, streamed = (
        phase_memory(phase, on_stacks, trainable, in_memory, setup, streams=streams) for streams in (False, True)
    )
    streams = bool(phase.frozen_prefix) and streams_trunk(resident, setup)
    training = step_flops(phase, on_stacks, tokens, setup)
    cached, recomputed = (boundary_flops(phase, before, on_stacks, setup, cached=cached) for cached in (True, False))
    return PhasePlan(
        phase=phase,
        steps=steps,
        tokens=tokens,
        trainable_parameters=trainable,
        # Nothing reads the exit norms below the last.
        frozen_parameters=parameters - trainable - spec.d_model * (len(phase.path) - 1),
        band=None if setup.config.training.objective == "clm" else setup.noise.band(phase.progress),
        memory=streamed if streams else resident,
        disk=stored if durable else 0,
        streams=streams,
        made_from_below=made_from_below(phase, before, setup),
        same_boundary=same_boundary(phase, below, setup),
        flops=training + (recomputed if cache is None else cached),
        boundary=Prices(resident.total, streamed.total, _store_bytes((*before, phase), setup), cached, recomputed)
        if phase.frozen_prefix
        else None,
    )


def _ends_parameters(spec: RackSpec) -> int:
    ends = spec.stacks if spec.ends == "per_stack" else 1
    return ends * (spec.embedding_parameters + spec.head_parameters)


def streams_trunk(resident: Memory, setup: Setup) -> bool:
    """Whether one stack of a trunk is in memory at a time.

    Args:
        resident: what a phase needs with all of it there.
    """
    asked = setup.config.training.trunk_residency
    if asked != "auto":
        return asked == "stream"
    return largest_window(setup) * setup.spec.seq_len >= LOADED_FOR or resident.total > setup.memory_budget


def largest_window(setup: Setup) -> int:
    """Sequences of the largest window."""
    return max(samples for samples, _ in sample_order(setup).window_sizes(0))


def phase_memory(
    phase: Phase, on_stacks: Mapping[int, int], trainable: int, in_memory: int, setup: Setup, *, streams: bool
) -> Memory:
    """The larger of what a training step holds and what a window holds on its way through the trunk.

    Args:
        on_stacks: how many weights of adapters each stack has.
        trainable: how many weights train.
        in_memory: bytes of boundaries that a cache holds in memory.
    """
    spec, training, formats = setup.spec, setup.config.training, setup.implementations.formats

    def held(stack: int) -> int:
        """Bytes of a stack as it is in memory."""
        width = 4 if stack in phase.trains else formats.precision(stack, "trunk").bytes_per_weight
        return round(width * spec.stack_parameters(stack)) + 4 * on_stacks.get(stack, 0)

    kept = phase.live_path if streams else phase.path
    weights = 4 * _ends_parameters(spec) + sum(map(held, kept))
    optimizer = round(STATE_BYTES[training.optimizer] * trainable)
    # Python, torch and the libraries behind them are in this process already.
    process = psutil.Process().memory_info().rss + FIRST_STEP if setup.device.type == "cpu" else 0
    window = 0
    if phase.frozen_prefix:
        window = largest_window(setup) * boundary_layout(phase, setup).bytes_per_entry
    predicted = predicted_share(phase, setup)
    step = Memory(
        process=process,
        weights=weights,
        gradients=4 * trainable,
        optimizer=optimizer,
        activations=step_activations(phase, spec, training.batch_size * spec.seq_len, predicted, setup),
        boundaries=in_memory if cache_of(phase, setup) is not None else window,
    )
    # A streamed stack is there twice while it is read: in full, as its file has it, and as it computes.
    reading = max((4 * spec.stack_parameters(stack) + held(stack) for stack in phase.frozen_prefix), default=0)
    filling = Memory(
        process=process,
        weights=weights + (reading if streams else 0),
        gradients=0,
        optimizer=optimizer,
        activations=chunk_activations(phase, spec),
        boundaries=in_memory + window,
    )
    return max(step, filling, key=lambda memory: memory.total)


def adapter_sizes(pairs: Iterable[tuple[int, str]], setup: Setup) -> dict[int, int]:
    """How many weights adapters, given as stack and name, add to each stack."""
    sizes: Counter[int] = Counter()
    for stack, name in pairs:
        sizes[stack] += setup.implementations.formats.adapters[name].size(setup.spec, stack)
    return dict(sizes)


def predicted_share(phase: Phase, setup: Setup) -> float:
    """Expected share of the tokens that the head is asked for."""
    if setup.config.training.objective == "clm":
        return 1.0
    low, high = phase.progress
    places = low + (high - low) * (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    return float(setup.noise.fraction(places).mean())


def cache_of(phase: Phase, setup: Setup) -> CacheBackend | None:
    """The backend that a phase's boundaries go to; None where they are held in memory, a window at a time."""
    return setup.implementations.cache if phase.boundaries == "cache" else None


def distinct_draws(phase: Phase, order: Order) -> float:
    """How many draws of each sample a phase trains on."""
    epochs = phase_epochs(phase, order)
    return min(epochs, phase.masks_per_sample) if phase.masks == "fixed" else epochs


def made_from_below(phase: Phase, before: Sequence[Phase], setup: Setup) -> bool:
    """Whether a phase's boundaries are made from those of the phase before."""
    cached = before and cache_of(phase, setup) is not None and cache_of(before[-1], setup) is not None
    return bool(cached) and follows_from_below(phase, before, setup)


def follows_from_below(phase: Phase, before: Sequence[Phase], setup: Setup) -> bool:
    """Whether a cache would make a phase's boundaries from those before: a shorter trunk, under equal draws."""
    below = before[-1] if before else None
    if below is None or not below.frozen_prefix or not phase.frozen_prefix:
        return False
    if phase.boundaries != "cache" or below.boundaries != "cache":
        return False
    shorter = len(below.frozen_prefix) < len(phase.frozen_prefix)
    same_trunk = phase.frozen_prefix[: len(below.frozen_prefix)] == below.frozen_prefix
    begins = _sharing(before, setup)[0].begins
    return shorter and same_trunk and phase.begins == begins and _draws(phase) == _draws(below)


def same_boundary(phase: Phase, below: Phase | None, setup: Setup) -> bool:
    """Whether a phase's boundaries are those of the phase before: one trunk, under equal draws, in one store."""
    if below is None or not phase.frozen_prefix or phase.frozen_prefix != below.frozen_prefix:
        return False
    cached = cache_of(phase, setup) is not None and cache_of(below, setup) is not None
    return cached and _draws(phase) == _draws(below)


def _sharing(phases: Sequence[Phase], setup: Setup) -> Sequence[Phase]:
    """The last of the phases, and those just before it that have its boundaries in one store with it."""
    place = len(phases) - 1
    while place and same_boundary(phases[place], phases[place - 1], setup):
        place -= 1
    return phases[place:]


def _draws(phase: Phase) -> tuple[object, ...]:
    return (phase.progress, phase.masks, phase.masks_per_sample, phase.weighting)


def boundary_bytes(phase: Phase, before: Sequence[Phase], setup: Setup) -> int:
    """Bytes of a phase's boundaries and of the earlier ones that are kept meanwhile, if nothing is evicted."""
    cache, phases = cache_of(phase, setup), [*before, phase]
    if cache is None or not phase.frozen_prefix:
        return 0
    size, kept = _store_bytes(phases, setup), cache.options.phases_kept - 1
    if kept < 1 and made_from_below(phase, before, setup):
        # What was read of the one below is given up when the chunk that was made of it is there.
        size += len(sample_order(setup).chunk(0)) * boundary_layout(phase, setup).bytes_per_entry
    phases = phases[: -len(_sharing(phases, setup))]
    while phases and kept:
        sharing = _sharing(phases, setup)
        if phases[-1].frozen_prefix and cache_of(phases[-1], setup) is not None:
            size += _store_bytes(phases, setup)
            kept -= 1
        phases = phases[: -len(sharing)]
    return size


def _store_bytes(phases: Sequence[Phase], setup: Setup) -> int:
    """Bytes of the store of the last of the phases, with what others have computed for it; bf16 where it has none."""
    order, by_draw, phase = sample_order(setup), Counter[int](), phases[-1]
    for sharing in _sharing(phases, setup):
        by_draw |= _boundaries_by_draw(sharing, order, cached=True)
    layout = boundary_layout(phase, setup)
    layout = layout if cache_of(phase, setup) is not None else evolve(layout, dtype="bf16")
    return by_draw.total() * layout.bytes_per_entry


def boundary_samples(phase: Phase, order: Order, *, cached: bool) -> int:
    """Boundaries that a phase computes, a whole window at a time; with a cache, each draw of a sample once."""
    return sum(_boundaries_by_draw(phase, order, cached=cached).values())


def _boundaries_by_draw(phase: Phase, order: Order, *, cached: bool) -> Counter[int]:
    left = phase_steps(phase, order)
    epoch, skipped = order.epoch_of(first_step(phase, order))
    by_draw: Counter[int] = Counter()
    while left > 0:
        for samples, steps in order.window_sizes(epoch):
            passed = min(steps, skipped)
            skipped -= passed
            if steps > passed and left > 0:
                by_draw[phase.draw_number(epoch) if cached else epoch] += samples
                left -= steps - passed
        epoch += 1
    return Counter({draw: min(samples, order.samples) for draw, samples in by_draw.items()})


def step_activations(phase: Phase, spec: RackSpec, tokens: int, masked_share: float, setup: Setup) -> int:
    """Bytes that one forward and backward pass holds at its peak.

    A token and block keeps for the backward pass in fp32 two tensors of each norm, q, k, v and attention's output, and
    in the format that it computes in both norms' results, the output projection's input, and four tensors of SwiGLU.
    The head holds logits, their softmax and their gradient, over the masked tokens.
    """
    kv, half = 2 * spec.n_kv_heads * spec.head_dim, setup.implementations.formats.active.bytes_per_weight < 4
    kept = [(4, spec.d_model, 6), (4, kv, 1)]  # bytes of a number, numbers a token, tensors
    kept += [(2, spec.d_model, 3), (2, spec.d_ff, 4)] if half else [(4, spec.d_model, 2), (4, spec.d_ff, 4)]
    a_block = sum(count * _held(width * numbers * tokens) for width, numbers, count in kept)
    live = [spec.blocks[stack] for stack in phase.live_path]
    if setup.config.training.activation_checkpointing:
        between = 4 * spec.d_model * len(live) * tokens
        live = [max(live, default=0)]
    else:
        between = 0
    live_blocks = sum(live)
    logits = round(masked_share * tokens) * spec.vocab_size * 4 * 3
    # One block's worth more for what its backward pass makes and frees.
    return round((live_blocks + 1) * a_block) + between + logits


def _held(tensor: int) -> float:
    """Bytes that a tensor of so many costs the process."""
    return tensor if tensor >= MAPPED_FROM else IN_HEAP * tensor


def chunk_activations(phase: Phase, spec: RackSpec) -> int:
    """Bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    return chunk_size(spec.seq_len) * spec.seq_len * 4 * (3 * spec.d_ff + 2 * spec.d_model)


def step_flops(phase: Phase, on_stacks: Mapping[int, int], tokens: int, setup: Setup) -> float:
    """Floating-point operations of training: a backward pass costs a forward for the input, one more for weights.

    Args:
        on_stacks: how many weights of adapters each stack has.
    """
    spec, again = setup.spec, int(setup.config.training.activation_checkpointing)
    total = 0.0
    for stack in phase.live_path:
        total += spec.stack_flops(stack) * tokens * ((3 if stack in phase.trains else 2) + again)
        total += 2 * on_stacks.get(stack, 0) * tokens * ((3 if stack in phase.trains_adapters else 2) + again)
    # A tied head trains with the embedding.
    head_passes = 3 if phase.head or (phase.embedding and spec.tie_embeddings) else 2
    return total + 2 * spec.d_model * spec.vocab_size * tokens * predicted_share(phase, setup) * head_passes


def boundary_flops(
    phase: Phase, before: Sequence[Phase], on_stacks: Mapping[int, int], setup: Setup, *, cached: bool
) -> float:
    """Floating-point operations of a phase's boundaries, with a cache or without."""
    if not phase.frozen_prefix:
        return 0.0
    spec, order = setup.spec, sample_order(setup)
    computed, done = _boundaries_by_draw(phase, order, cached=cached), 0
    if cached:
        for sharing in _sharing((*before, phase), setup)[:-1]:
            computed -= _boundaries_by_draw(sharing, order, cached=True)
        done = len(before[-1].frozen_prefix) if follows_from_below(phase, before, setup) else 0
    a_token = sum(spec.stack_flops(stack) + 2 * on_stacks.get(stack, 0) for stack in phase.frozen_prefix[done:])
    return a_token * spec.seq_len * float(sum(computed.values()))
