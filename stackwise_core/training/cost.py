"""What a phase costs: memory, disk and floating-point operations, estimated before anything runs."""

from __future__ import annotations

import psutil
import torch
from attrs import asdict, frozen

from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
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
    band: tuple[float, float]
    """Mask fractions at the two ends of its progress."""
    memory: Memory
    disk: int
    """Most bytes of boundaries on disk, the one below included."""
    made_from_below: bool
    """Whether its boundaries are made from those of the phase before."""
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


def cache_layout(setup: Setup) -> Layout:
    """The shape of a stored boundary; without a cache, of one held in a window."""
    cache = setup.implementations.cache
    dtype = "fp32" if cache is None else cache.options.dtype
    return Layout(tokens=setup.config.data.seq_len, d_model=setup.spec.d_model, dtype=dtype)


def fractions(phase: Phase, schedule: MaskSchedule) -> tuple[float, float]:
    """Mask fractions at the ends of a phase's progress."""
    low, high = schedule.fraction(torch.tensor(phase.progress, dtype=torch.float64)).tolist()
    return low, high


def phase_steps(phase: Phase, order: Order) -> int:
    """Optimizer steps of a phase."""
    return phase.steps or sum(order.steps_per_epoch(epoch) for epoch in range(phase.epochs))


def phase_epochs(phase: Phase, order: Order) -> int:
    """Passes over the training split that a phase begins."""
    return -(-phase.steps // order.steps_per_epoch()) if phase.steps else phase.epochs


def price(phase: Phase, below: Phase | None, setup: Setup) -> PhasePlan:
    """Estimate what a phase costs."""
    spec, training, implementations = setup.spec, setup.config.training, setup.implementations
    order, layout = sample_order(setup), cache_layout(setup)
    steps = phase_steps(phase, order)
    tokens = round(steps / order.steps_per_epoch() * len(setup.corpus.train)) * spec.seq_len
    low, high = fractions(phase, implementations.schedule)
    trainable = sum(spec.stack_parameters(stack) for stack in phase.trains)
    trainable += spec.embedding_parameters if phase.embedding else 0
    trainable += spec.head_parameters if phase.head else 0
    resident = sum(spec.stack_parameters(stack) for stack in phase.path)
    resident += spec.embedding_parameters + spec.head_parameters

    frozen_weights = sum(spec.stack_parameters(stack) for stack in set(phase.path) - phase.trains)
    weights = 4 * (resident - frozen_weights) + round(implementations.trunk.bytes_per_weight * frozen_weights)
    stored = boundary_bytes(phase, below, setup)
    capacity = None if implementations.cache is None else implementations.cache.options.capacity
    stored = stored if capacity is None else min(stored, capacity)
    durable = implementations.cache is not None and implementations.cache.durable
    window = min(training.window, len(setup.corpus.train)) * layout.bytes_per_entry if phase.frozen_prefix else 0
    boundaries = window if implementations.cache is None else (0 if durable else stored)
    memory = Memory(
        process=psutil.Process().memory_info().rss + FIRST_STEP if setup.device.type == "cpu" else 0,
        weights=weights,
        gradients=4 * trainable,
        optimizer=8 * trainable,
        activations=max(
            step_activations(phase, spec, training.batch_size * spec.seq_len, (low + high) / 2, setup),
            chunk_activations(phase, spec),
        ),
        boundaries=boundaries,
    )
    return PhasePlan(
        phase=phase,
        steps=steps,
        tokens=tokens,
        trainable_parameters=trainable,
        frozen_parameters=resident - trainable,
        band=(low, high),
        memory=memory,
        disk=stored if durable else 0,
        made_from_below=made_from_below(phase, below),
        flops=phase_flops(phase, below, spec, tokens, (low + high) / 2, setup),
    )


def distinct_draws(phase: Phase, order: Order) -> int:
    """How many draws of each sample a phase trains on."""
    epochs = phase_epochs(phase, order)
    return min(epochs, phase.masks_per_sample) if phase.masks == "fixed" else epochs


def made_from_below(phase: Phase, below: Phase | None) -> bool:
    """Whether a phase's boundaries can be made from those of the phase before: a shorter trunk, under equal draws."""
    if below is None or not below.frozen_prefix or not phase.frozen_prefix:
        return False
    draws = [(p.progress, p.masks, p.masks_per_sample, p.weighting) for p in (phase, below)]
    return draws[0] == draws[1] and phase.frozen_prefix[: len(below.frozen_prefix)] == below.frozen_prefix


def boundary_bytes(phase: Phase, below: Phase | None, setup: Setup) -> int:
    """Bytes of a phase's boundaries, and of those below that they are made from, if nothing is evicted."""
    if not phase.frozen_prefix:
        return 0
    one = distinct_draws(phase, sample_order(setup)) * len(setup.corpus.train) * cache_layout(setup).bytes_per_entry
    return 2 * one if made_from_below(phase, below) else one


def step_activations(phase: Phase, spec: RackSpec, tokens: int, masked_share: float, setup: Setup) -> int:
    """Bytes that one forward and backward pass holds at its peak.

    A token and block keeps for the backward pass in fp32 two tensors of each norm, q, k, v and attention's output, and
    in the format that it computes in both norms' results, the output projection's input, and four tensors of SwiGLU.
    The head holds logits, their softmax and their gradient, over the masked tokens.
    """
    kv = 2 * spec.n_kv_heads * spec.head_dim
    if setup.implementations.active.bytes_per_weight < 4:
        a_token_and_block = 4 * (6 * spec.d_model + kv) + 2 * (3 * spec.d_model + 4 * spec.d_ff)
    else:  # the projection's input is attention's output
        a_token_and_block = 4 * (8 * spec.d_model + kv + 4 * spec.d_ff)
    live_blocks = sum(spec.blocks[stack] for stack in phase.live_path)
    logits = round(masked_share * tokens) * spec.vocab_size * 4 * 3
    # One block's worth more for what its backward pass makes and frees.
    return round(ALLOCATOR * (live_blocks + 1) * a_token_and_block * tokens) + logits


def chunk_activations(phase: Phase, spec: RackSpec) -> int:
    """Bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    return chunk_size(spec.seq_len) * spec.seq_len * 4 * (3 * spec.d_ff + 2 * spec.d_model)


def phase_flops(
    phase: Phase, below: Phase | None, spec: RackSpec, tokens: int, masked_share: float, setup: Setup
) -> float:
    """Floating-point operations: a backward pass costs a forward for the input and one more for weights that train."""
    total = 0.0
    for stack in phase.live_path:
        total += spec.stack_flops(stack) * tokens * (3 if stack in phase.trains else 2)
    head_passes = 3 if phase.head or phase.embedding else 2
    total += 2 * spec.d_model * spec.vocab_size * tokens * masked_share * head_passes
    split_tokens = len(setup.corpus.train) * spec.seq_len
    order, cached = sample_order(setup), setup.implementations.cache is not None
    computed = split_tokens * (distinct_draws(phase, order) if cached else phase_epochs(phase, order))
    done = len(below.frozen_prefix) if cached and below is not None and made_from_below(phase, below) else 0
    trunk = phase.frozen_prefix[done:]
    return total + sum(spec.stack_flops(stack) for stack in trunk) * computed
