"""Estimate of the memory that a phase will need."""

from __future__ import annotations

from collections.abc import Mapping

import psutil
from attrs import asdict, evolve, frozen

from stackwise_core.engine.estimates.parameter_count import ends_parameters, trainable_ends
from stackwise_core.engine.estimates.pass_estimate import (
    Pass,
    at_work_in_a_block,
    head_at_work,
    head_tensors,
    kept_by_a_block,
    kept_by_kernels,
    weight_copies,
)
from stackwise_core.engine.offload.disk import SLOTS
from stackwise_core.engine.phases.phase_boundaries import boundary_layout, cache_of
from stackwise_core.engine.phases.phase_steps import (
    largest_batch,
    largest_predicted_share,
    largest_window,
    predicted_spread,
    sample_order,
)
from stackwise_core.engine.phases.setup import Setup, chunk_bytes_a_token
from stackwise_core.engine.process.allocator import MAPPED_FROM
from stackwise_core.engine.rack.head_pieces import piece_rows
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec

# Measured with tests/benchmarks/plan_memory.py on a CPU; docs/benchmarks/plan_memory.md has the table.
FIRST_STEP = 45_000_000
"""Bytes that a process's first step adds once, whatever the model, beyond those of ``first_step``."""
IN_HEAP = 1.4
"""Peak resident bytes for each byte of a tensor that the C library takes from its heap, where freed memory waits for
one that fits; larger ones are mapped by themselves."""

CUBLAS = 2 * (8 * 4096 << 10)
"""Bytes of the workspaces of cuBLAS, of the thread that computes and of autograd's. torch takes them from its own
allocator, as large as CUBLAS_WORKSPACE_CONFIG=:4096:8 says (aten/cuda/CublasHandlePool.cpp), so that they count in
``max_memory_allocated``. The context of CUDA doesn't: what is free of a device is counted with it there."""


@frozen
class Memory:
    """Estimated memory of the device, in bytes, at the moment when a phase needs most: in a training step, or while a
    window passes the trunk."""

    process: int
    """On a CPU, bytes that this process holds already (Python, torch, the libraries behind it), and that its first step
    will load; on a CUDA device, the workspaces of its libraries."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    boundaries: int
    """Bytes held in memory: a window's without a cache or while it is made, all of them with a cache in memory. 0 on a
    CUDA device: host memory holds them."""

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
        training = max(trained_parameters(phase, stack, on_stacks, spec) for stack in phase.live_path)
        trainable = trainable_ends(phase, spec)
    optimizer = round(state_bytes * trainable)
    # Python, torch and the libraries behind them are in this process already.
    process = psutil.Process().memory_info().rss + FIRST_STEP if on_cpu else CUBLAS
    window = 0
    if phase.frozen_prefix:
        window = largest_window(setup) * boundary_layout(phase, setup).bytes_per_entry
    cache = cache_of(phase, setup)
    # What a store has no room for is held until the next window.
    fits = cache is not None and (cache.options.capacity is None or cache.options.capacity >= window)
    one = pass_of(phase, largest_batch(setup) * spec.seq_len, largest_predicted_share(phase, setup), setup)
    moment = largest_moment(phase, spec, one, setup, trainable=trainable, one_stack=offloads)
    kernels = kept_by_kernels(spec, one)
    step = Memory(
        process=process,
        weights=weights,
        gradients=moment.gradients,
        optimizer=optimizer,
        activations=moment.activations + kernels,
        boundaries=in_memory + (0 if fits else window) if on_cpu else 0,
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
        activations=chunk_activations(phase, setup) + kernels,
        boundaries=in_memory + window if on_cpu else 0,
    )
    return max(step, filling, key=lambda memory: memory.total)


def trained_parameters(phase: Phase, stack: int, on_stacks: Mapping[int, int], spec: RackSpec) -> int:
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
        total += state * trained_parameters(phase, stack, on_stacks, spec)
    passes, width = training.gradient_accumulation, 4 if training.boundary_dtype == "fp32" else 2
    numbers = spec.d_model * largest_batch(setup) * spec.seq_len * passes
    return round(total) + (len(phase.live_path) * width + 4) * numbers  # the gradients that go down are in fp32


def pass_of(phase: Phase, tokens: int, predicted_share: float, setup: Setup) -> Pass:
    """Return the sizes of a forward and backward pass of a phase over so many tokens."""
    half = setup.implementations.formats.active.bytes_per_weight < 4
    return Pass(
        tokens=tokens,
        predicted=round(predicted_share * tokens),
        spread=round(predicted_spread(phase, setup) * tokens),
        half=half,
        on_cpu=setup.device.type == "cpu",
        rows=piece_rows(setup.spec.vocab_size, setup.device),
    )


def step_activations(phase: Phase, spec: RackSpec, tokens: int, predicted_share: float, setup: Setup) -> int:
    """Estimate the bytes of the activations that a forward and backward pass makes."""
    one = pass_of(phase, tokens, predicted_share, setup)
    blocks = sum(spec.blocks[stack] for stack in phase.live_path) + 1
    return blocks * sum(kept_by_a_block(spec, one)) + head_at_work(spec, one, trains=False)


@frozen
class Moment:
    """A moment of a step: bytes of gradients, and of activations."""

    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.gradients + self.activations


def largest_moment(
    phase: Phase, spec: RackSpec, one: Pass, setup: Setup, *, trainable: int, one_stack: bool = False
) -> Moment:
    """Estimate the moment of a step that needs most: in the head, in a block's backward pass (the last or the first
    one's), or when all gradients are there.

    Gradients come into being on the way down, while activations go, unless they are those of an earlier forward pass.

    Args:
        trainable: how many weights train that are in memory throughout.
        one_stack: whether the stacks run one at a time.
    """
    heap = IN_HEAP if one.on_cpu else 1.0
    a_block = sum(_held(each, one) for each in kept_by_a_block(spec, one))
    at_work = heap * at_work_in_a_block(spec, one)
    live = [spec.blocks[stack] for stack in phase.live_path]
    stacks = [weight_copies(spec.stack_parameters(stack), one) for stack in phase.live_path if stack in phase.trains]
    between = heap * 4 * spec.d_model * one.tokens
    all_blocks = sum(live) * a_block + sum(stacks)
    a_stack = max(live, default=0) * a_block + max(stacks, default=0)
    if one_stack:  # its input, the gradient that arrives, and the one that leaves
        in_head = in_block = 3 * between + a_stack
    elif setup.config.training.activation_checkpointing:
        in_head, in_block = len(live) * between, len(live) * between + a_stack
    else:
        in_head = in_block = all_blocks
    in_head += head_tensors(spec, one) + head_at_work(spec, one, trains=phase.head)
    of_head = 4 * spec.vocab_size * spec.d_model if phase.head else 0
    passes = setup.config.training.gradient_accumulation
    before = 4 * trainable if passes > 1 or one_stack else 0
    # A tied matrix has two gradients until the end of the step (separate_head).
    apart = of_head if (passes > 1 or one_stack) and phase.embedding and spec.tie_embeddings else 0
    lowest = phase.live_path[0]
    of_lowest = 4 * spec.stack_parameters(lowest) // spec.blocks[lowest] if lowest in phase.trains else 0
    moments = (
        Moment(before + apart, round(in_head)),
        Moment(max(before + apart, of_head), round(in_block + at_work)),
        Moment(max(before, 4 * trainable - of_lowest) + apart, round(a_block + at_work)),
        Moment(4 * trainable + apart, 0),
    )
    return max(moments, key=lambda moment: moment.total)


def _held(tensor: int, one: Pass) -> float:
    """Return the bytes that a tensor of so many costs: on a CPU, freed memory of the heap waits for one that fits."""
    return IN_HEAP * tensor if one.on_cpu and tensor < MAPPED_FROM else tensor


def chunk_activations(phase: Phase, setup: Setup) -> int:
    """Estimate the bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    spec = setup.spec
    return sample_order(setup).chunk_size * spec.seq_len * chunk_bytes_a_token(spec.d_model, spec.d_ff)
