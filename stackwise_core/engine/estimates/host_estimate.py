"""Estimate of the host memory that a phase needs beside a device that has memory of its own."""

from __future__ import annotations

from collections.abc import Mapping

import psutil
from attrs import asdict, frozen

from stackwise_core.engine.estimates.memory_estimate import trained_parameters
from stackwise_core.engine.estimates.parameter_count import ends_parameters
from stackwise_core.engine.offload.disk import SLOTS
from stackwise_core.engine.phases.phase_boundaries import boundary_layout
from stackwise_core.engine.phases.phase_steps import largest_batch, largest_window
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec


@frozen
class HostMemory:
    """Estimated host memory, in bytes, of a phase on a device that has memory of its own."""

    process: int
    """Bytes that this process holds already."""
    offloaded: int
    """Bytes of page-locked buffers in which training state and boundaries of a step wait, or that a disk is read to."""
    boundaries: int
    """Bytes of a window, and of a cache in memory."""
    reading: int
    """Bytes of the largest stack, or of embedding and head, in full precision, while it is read, drawn or written."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())


def page_locked_bytes(size: int) -> int:
    """Return what a page-locked tensor of so many bytes takes: torch rounds it up to a power of two.

    Source: ``CachingHostAllocatorImpl::allocate`` (ATen/core/CachingHostAllocator.h).
    """
    return 1 << max(0, size - 1).bit_length()


def host_memory(phase: Phase, on_stacks: Mapping[int, int], in_memory: int, setup: Setup, waits: int) -> HostMemory:
    """Estimate the host memory of a phase.

    Args:
        on_stacks: how many weights of adapters each stack has.
        in_memory: bytes of boundaries that a cache holds in memory.
        waits: bytes of page-locked buffers.
    """
    spec = setup.spec
    window = 0
    if phase.frozen_prefix:
        window = page_locked_bytes(largest_window(setup) * boundary_layout(phase, setup).bytes_per_entry)
    stacks = [spec.stack_parameters(stack) + on_stacks.get(stack, 0) for stack in phase.path]
    return HostMemory(
        process=psutil.Process().memory_info().rss,
        offloaded=waits,
        boundaries=in_memory + window,
        reading=4 * max(*stacks, ends_parameters(phase, spec)),
    )


def waiting_in_memory(phase: Phase, on_stacks: Mapping[int, int], setup: Setup) -> int:
    """Estimate the bytes of the page-locked buffers of all that waits in host memory while a phase is streamed."""
    training, optimizer, spec = setup.config.training, setup.implementations.optimizer, setup.spec
    total = 0
    for stack in phase.live_path:
        for size in _trained_tensors(phase, stack, on_stacks, spec):
            moments = 2 * page_locked_bytes(round(optimizer.state_bytes * size / 2)) if optimizer.state_bytes else 0
            total += page_locked_bytes(4 * size) * (2 if training.clip == "all" else 1) + moments
    numbers = spec.d_model * largest_batch(setup) * spec.seq_len
    inputs = len(phase.live_path) * page_locked_bytes((4 if training.boundary_dtype == "fp32" else 2) * numbers)
    return total + training.gradient_accumulation * (inputs + page_locked_bytes(4 * numbers))


def reading_ahead(phase: Phase, on_stacks: Mapping[int, int], setup: Setup) -> int:
    """Estimate the bytes of the page-locked buffers that are read to from a disk, one entry ahead."""
    spec = setup.spec
    largest = max(trained_parameters(phase, stack, on_stacks, spec) for stack in phase.live_path)
    return SLOTS * page_locked_bytes(4 * max(largest, spec.d_model * largest_batch(setup) * spec.seq_len))


def _trained_tensors(phase: Phase, stack: int, on_stacks: Mapping[int, int], spec: RackSpec) -> list[int]:
    """Return the sizes of the tensors of a stack that train, in numbers; those of adapters as one."""
    sizes = []
    if stack in phase.trains:
        d, keys = spec.d_model, spec.n_kv_heads * spec.head_dim
        a_block = [d * d, d * keys, d * keys, d * d, *[d * spec.d_ff] * 3, d, d]
        sizes += a_block * spec.blocks[stack] + [d]
    if stack in phase.trains_adapters:
        sizes.append(on_stacks.get(stack, 0))
    return sizes
