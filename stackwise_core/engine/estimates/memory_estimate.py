"""Estimate of the memory that a phase will need."""

from __future__ import annotations

from collections.abc import Mapping

import psutil
from attrs import asdict, evolve, frozen

from stackwise_core.engine.draws.order import chunk_size
from stackwise_core.engine.estimates.parameter_count import ends_parameters, trainable_ends
from stackwise_core.engine.offload.disk import SLOTS
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of
from stackwise_core.engine.phases.phase_steps import largest_batch, largest_window, predicted_share
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.process.allocator import MAPPED_FROM
from stackwise_core.engine.rack.head_pieces import piece_rows
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec

# Measured with tests/benchmarks/plan_memory.py on a CPU; docs/benchmarks/plan_memory.md has the table.
FIRST_STEP = 45_000_000
"""Bytes that a process's first step adds once, whatever the model, beyond those of ``first_step``."""
AT_WORK, AT_WORK_STREAMED = 1.0, 0.1
"""Blocks' worth of activations that backward passes make and free."""
IN_HEAP = 1.4
"""Peak resident bytes for each byte of a tensor that the C library takes from its heap, where freed memory waits for
one that fits; larger ones are mapped by themselves."""


@frozen
class Memory:
    """Estimated memory, in bytes, at the moment when a phase needs most: a training step, or a window in the trunk."""

    process: int
    """Bytes that this process holds already (Python, torch, the libraries behind it), and that its first step will
    load."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    boundaries: int
    """Bytes held in memory: a window's without a cache or while it is made, all of them with a cache in memory."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())


def phase_memory(
    phase: Phase,
    on_stacks: Mapping[int, int],
    trainable: int,
    in_memory: int,
    setup: Setup,
    *,
    streams: bool,
    offloads: bool = False,
) -> Memory:
    """Estimate the larger of what a training step holds and what a window holds on its way through the trunk.

    Args:
        on_stacks: how many weights of adapters each stack has.
        trainable: how many weights train.
        in_memory: bytes of boundaries that a cache holds in memory.
        streams: whether the trunk is streamed.
        offloads: whether what trains is streamed, too.
    """
    spec, formats = setup.spec, setup.implementations.formats

    def held(stack: int) -> int:
        """Return the bytes that a stack occupies in memory."""
        width = 4 if stack in phase.trains else formats.precision(stack, "trunk").bytes_per_weight
        return round(width * spec.stack_parameters(stack)) + 4 * on_stacks.get(stack, 0)

    kept = () if offloads else phase.live_path if streams else phase.path
    weights = 4 * ends_parameters(phase, spec) + sum(map(held, kept))
    state_bytes = setup.implementations.optimizer.state_bytes
    on_cpu = setup.device.type == "cpu"
    if offloads:
        training = max(_trains(phase, stack, on_stacks, spec) for stack in phase.live_path)
        trainable = trainable_ends(phase, spec)
    optimizer = round(state_bytes * trainable)
    # Python, torch and the libraries behind them are in this process already.
    process = psutil.Process().memory_info().rss + FIRST_STEP if on_cpu else 0
    window = 0
    if phase.frozen_prefix:
        window = largest_window(setup) * boundary_layout(phase, setup).bytes_per_entry
    cache = cache_of(phase, setup)
    # What a store has no room for is held until the next window.
    fits = cache is not None and (cache.options.capacity is None or cache.options.capacity >= window)
    predicted = predicted_share(phase, setup)
    activations = step_activations(
        phase, spec, largest_batch(setup) * spec.seq_len, predicted, setup, one_stack=offloads
    )
    step = Memory(
        process=process,
        weights=weights,
        gradients=4 * trainable,
        optimizer=optimizer,
        activations=activations,
        boundaries=in_memory + (0 if fits else window),
    )
    if offloads:
        # Buffers are what is read ahead and written behind; host memory needs none.
        entry = max(4 * training, 4 * spec.d_model * largest_batch(setup) * spec.seq_len)
        buffers = SLOTS * entry if on_cpu and setup.config.training.offload != "memory" else 0
        at_work = max(map(held, phase.live_path))
        with_stack = evolve(step, weights=weights + buffers + at_work, gradients=step.gradients + 4 * training)
        # While a stack is updated its moments are there, but no activations; on a CPU it is updated in the buffers.
        updates = round(state_bytes * training)
        if not on_cpu or setup.config.training.clip == "stack":
            updating = evolve(with_stack, optimizer=optimizer + updates, activations=0)
        else:
            updating = evolve(step, weights=weights + buffers, optimizer=optimizer + updates, activations=0)
        step = max(with_stack, updating, key=lambda memory: memory.total)
    # A streamed stack is there twice while it is read: in full, as in its file, and as it computes.
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


def _trains(phase: Phase, stack: int, on_stacks: Mapping[int, int], spec: RackSpec) -> int:
    """Count the weights that train of a stack."""
    trains = spec.stack_parameters(stack) if stack in phase.trains else 0
    return trains + (on_stacks.get(stack, 0) if stack in phase.trains_adapters else 0)


def offloaded_bytes(phase: Phase, on_stacks: Mapping[int, int], setup: Setup) -> int:
    """Estimate the bytes of training state and boundaries that wait while a phase is streamed."""
    spec, training = setup.spec, setup.config.training
    gradients = 4 if training.clip == "all" else 0  # else they don't wait
    state = 4 + gradients + setup.implementations.optimizer.state_bytes
    total = 0.0
    for stack in phase.live_path:
        total += state * _trains(phase, stack, on_stacks, spec)
    passes, width = training.gradient_accumulation, 4 if training.boundary_dtype == "fp32" else 2
    numbers = spec.d_model * largest_batch(setup) * spec.seq_len * passes
    return round(total) + (len(phase.live_path) * width + 4) * numbers  # the gradients that go down are in fp32


def step_activations(
    phase: Phase, spec: RackSpec, tokens: int, masked_share: float, setup: Setup, *, one_stack: bool = False
) -> int:
    """Estimate the bytes that one forward and backward pass holds at its peak.

    A token and block keeps for the backward pass in fp32 two tensors of each norm, q, k, v and attention's output, and
    in the format that it computes in both norms' results, the output projection's input, and four tensors of SwiGLU.
    The head holds logits, their softmax and their gradient, over the masked tokens of a piece.

    Args:
        one_stack: whether the stacks run one at a time.
    """
    kv, half = 2 * spec.n_kv_heads * spec.head_dim, setup.implementations.formats.active.bytes_per_weight < 4
    kept = [(4, spec.d_model, 6), (4, kv, 1)]  # bytes of a number, numbers a token, tensors
    kept += [(2, spec.d_model, 3), (2, spec.d_ff, 4)] if half else [(4, spec.d_model, 2), (4, spec.d_ff, 4)]
    a_block = sum(count * _held(width * numbers * tokens) for width, numbers, count in kept)
    live = [spec.blocks[stack] for stack in phase.live_path]
    if one_stack:  # its input, the gradient that arrives, and the one that leaves
        between, live = 3 * 4 * spec.d_model * tokens, [max(live)]
    elif setup.config.training.activation_checkpointing:
        between = 4 * spec.d_model * len(live) * tokens
        live = [max(live, default=0)]
    else:
        between = 0
    live_blocks = sum(live)
    rows = min(round(masked_share * tokens), piece_rows(spec.vocab_size, setup.device))
    logits = rows * spec.vocab_size * 4 * 3
    at_work = AT_WORK_STREAMED if one_stack else AT_WORK
    return round((live_blocks + at_work) * a_block) + between + logits


def _held(tensor: int) -> float:
    """Return the bytes that a tensor of so many costs the process."""
    return tensor if tensor >= MAPPED_FROM else IN_HEAP * tensor


def chunk_activations(phase: Phase, spec: RackSpec) -> int:
    """Estimate the bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    return chunk_size(spec.seq_len) * spec.seq_len * 4 * (3 * spec.d_ff + 2 * spec.d_model)
