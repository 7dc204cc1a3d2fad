"""What a phase costs: memory, disk and floating-point operations, estimated before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import psutil
import torch
from attrs import asdict, frozen

from stackwise_core.interfaces.cache_backend import CacheBackend, Layout
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.training.optimizer import STATE_BYTES
from stackwise_core.training.order import Order, chunk_size
from stackwise_core.training.setup import Setup

# Measured with tests/benchmarks/plan_memory.py on a CPU; docs/benchmarks/plan_memory.md has the table.
FIRST_STEP = 120_000_000
"""Bytes that a process's first optimizer step adds once, whatever the model: libraries, thread pools, kernels."""
ALLOCATOR = 1.6
"""Peak resident bytes for each byte of activations: the allocator keeps freed tensors whose size doesn't recur."""


@frozen
class Memory:
    """Estimated peak memory of a phase, in bytes."""

    process: int
    """What this process holds already (Python, torch, the libraries behind it) and its first step will load."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of the larger of a training step and a chunk on its way through the trunk."""
    boundaries: int
    """Held in memory: a window's without a cache, all of them with one in memory."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


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
    made_from_below: bool
    """Whether its boundaries are made from those of the phase before."""
    same_boundary: bool
    """Whether its boundaries are those of the phase before."""
    flops: float
    """Floating-point operations of training steps and boundaries."""


def sample_order(setup: Setup) -> Order:
    """The order in which the training split is visited."""
    training, data = setup.config.training, setup.config.data
    return Order(
        samples=len(setup.corpus.train),
        seq_len=data.seq_len,
        window=training.window,
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
    spec, training, implementations = setup.spec, setup.config.training, setup.implementations
    order, layout = sample_order(setup), boundary_layout(phase, setup)
    steps = phase_steps(phase, order)
    tokens = round(steps / order.steps_per_epoch() * len(setup.corpus.train)) * spec.seq_len
    trainable = sum(spec.stack_parameters(stack) for stack in phase.trains)
    # Of the stacks' exit norms only the last one's trains, and only where its stack does.
    trainable -= spec.d_model * (len(phase.trains) - (phase.exit_norm is not None))
    trainable += spec.embedding_parameters if phase.embedding else 0
    trainable += spec.head_parameters if phase.head else 0
    on_stacks = adapter_sizes({pair for each in (*before, phase) for pair in each.adapters}, setup)
    adapters = sum(on_stacks.get(stack, 0) for stack in phase.path)
    trainable += sum(adapter_sizes(phase.adapters, setup).values())
    resident = sum(spec.stack_parameters(stack) for stack in phase.path)
    ends = spec.stacks if spec.ends == "per_stack" else 1
    resident += ends * (spec.embedding_parameters + spec.head_parameters)

    frozen = set(phase.path) - phase.trains
    weights = 4 * (resident + adapters - sum(spec.stack_parameters(stack) for stack in frozen))
    for stack in frozen:
        held = implementations.formats.precision(stack, "trunk").bytes_per_weight
        weights += round(held * spec.stack_parameters(stack))
    cache = cache_of(phase, setup)
    stored = boundary_bytes(phase, before, setup) if cache is not None else 0
    stored = stored if cache is None or cache.options.capacity is None else min(stored, cache.options.capacity)
    durable = cache is not None and cache.durable
    window = max(samples for samples, _ in order.window_sizes(0)) * layout.bytes_per_entry if phase.frozen_prefix else 0
    boundaries = window if cache is None else (0 if durable else stored)
    memory = Memory(
        process=psutil.Process().memory_info().rss + FIRST_STEP if setup.device.type == "cpu" else 0,
        weights=weights,
        gradients=4 * trainable,
        optimizer=round(STATE_BYTES[training.optimizer] * trainable),
        activations=max(
            step_activations(phase, spec, training.batch_size * spec.seq_len, predicted_share(phase, setup), setup),
            chunk_activations(phase, spec),
        ),
        boundaries=boundaries,
    )
    return PhasePlan(
        phase=phase,
        steps=steps,
        tokens=tokens,
        trainable_parameters=trainable,
        # Nothing reads the exit norms below the last.
        frozen_parameters=resident + adapters - trainable - spec.d_model * (len(phase.path) - 1),
        band=None if training.objective == "clm" else setup.noise.band(phase.progress),
        memory=memory,
        disk=stored if durable else 0,
        made_from_below=made_from_below(phase, before, setup),
        same_boundary=same_boundary(phase, below, setup),
        flops=phase_flops(phase, before, on_stacks, tokens, setup),
    )


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
    """Whether a phase's boundaries can be made from those of the phase before: a shorter trunk, under equal draws."""
    below = before[-1] if before else None
    if below is None or not below.frozen_prefix or not phase.frozen_prefix:
        return False
    if cache_of(phase, setup) is None or cache_of(below, setup) is None:
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
    cache = cache_of(phase, setup)
    kept = 0 if cache is None else cache.options.keep_time_steps - 1
    if made_from_below(phase, before, setup):
        kept = max(kept, 1)
    phases: Sequence[Phase] = (*before, phase)
    size = _store_bytes(phases, setup) if phase.frozen_prefix else 0
    phases = phases[: -len(_sharing(phases, setup))]
    while phases and kept:
        sharing = _sharing(phases, setup)
        if phases[-1].frozen_prefix and cache_of(phases[-1], setup) is not None:
            size += _store_bytes(phases, setup)
            kept -= 1
        phases = phases[: -len(sharing)]
    return size


def _store_bytes(phases: Sequence[Phase], setup: Setup) -> int:
    """Bytes of the store of the last of the phases, with what others have computed for it."""
    order, by_draw = sample_order(setup), Counter[int]()
    for phase in _sharing(phases, setup):
        by_draw |= _boundaries_by_draw(phase, order, cached=True)
    return by_draw.total() * boundary_layout(phases[-1], setup).bytes_per_entry


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
    kv = 2 * spec.n_kv_heads * spec.head_dim
    if setup.implementations.formats.active.bytes_per_weight < 4:
        a_token_and_block = 4 * (6 * spec.d_model + kv) + 2 * (3 * spec.d_model + 4 * spec.d_ff)
    else:  # the projection's input is attention's output
        a_token_and_block = 4 * (8 * spec.d_model + kv + 4 * spec.d_ff)
    live = [spec.blocks[stack] for stack in phase.live_path]
    if setup.config.training.activation_checkpointing:
        between = 4 * spec.d_model * len(live) * tokens
        live = [max(live, default=0)]
    else:
        between = 0
    live_blocks = sum(live)
    logits = round(masked_share * tokens) * spec.vocab_size * 4 * 3
    # One block's worth more for what its backward pass makes and frees.
    return round(ALLOCATOR * (live_blocks + 1) * a_token_and_block * tokens) + between + logits


def chunk_activations(phase: Phase, spec: RackSpec) -> int:
    """Bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    return chunk_size(spec.seq_len) * spec.seq_len * 4 * (3 * spec.d_ff + 2 * spec.d_model)


def phase_flops(
    phase: Phase, before: Sequence[Phase], on_stacks: Mapping[int, int], tokens: int, setup: Setup
) -> float:
    """Floating-point operations: a backward pass costs a forward for the input and one more for weights that train.

    Args:
        on_stacks: how many weights of adapters each stack has.
    """
    spec, order = setup.spec, sample_order(setup)
    total, again = 0.0, int(setup.config.training.activation_checkpointing)
    for stack in phase.live_path:
        total += spec.stack_flops(stack) * tokens * ((3 if stack in phase.trains else 2) + again)
        total += 2 * on_stacks.get(stack, 0) * tokens * ((3 if stack in phase.trains_adapters else 2) + again)
    # A tied head trains with the embedding.
    head_passes = 3 if phase.head or (phase.embedding and spec.tie_embeddings) else 2
    total += 2 * spec.d_model * spec.vocab_size * tokens * predicted_share(phase, setup) * head_passes
    if not phase.frozen_prefix:
        return total
    computed = _boundaries_by_draw(phase, order, cached=cache_of(phase, setup) is not None)
    for sharing in _sharing((*before, phase), setup)[:-1]:
        computed -= _boundaries_by_draw(sharing, order, cached=True)
    done = len(before[-1].frozen_prefix) if made_from_below(phase, before, setup) else 0
    a_token = sum(spec.stack_flops(stack) + 2 * on_stacks.get(stack, 0) for stack in phase.frozen_prefix[done:])
    return total + a_token * spec.seq_len * sum(computed.values())


def stores_at_once(planned: Sequence[PhasePlan], setup: Setup) -> int:
    """Of how many phases boundaries are kept at the same time, at most."""
    cache = setup.implementations.cache
    kept = 1 if cache is None else cache.options.keep_time_steps
    return max(kept, 2 if any(plan.made_from_below for plan in planned) else 1)
