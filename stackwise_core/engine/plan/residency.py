"""Choice of a phase's residency: all in memory, its trunk streamed, or all of it streamed, one stack at a time."""

from __future__ import annotations

from typing import Literal

from stackwise_core.engine.estimates.memory_estimate import Memory
from stackwise_core.engine.phases.phase_steps import largest_window
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.system.machine import memory

LOADED_FOR = 32_768
"""Tokens that a stack serves each time it is read, from which on the reading doesn't count: reading and hashing take
some 3 ns a weight, and computing takes 2 operations a weight and token, which is 300 times as long at 100 GFLOP/s."""

OffloadTo = Literal["memory", "disk"]


def streams_trunk(resident: Memory, setup: Setup) -> bool:
    """Return whether one stack of a trunk is in memory at a time.

    Args:
        resident: what a phase needs with all of it there.
    """
    asked = setup.config.training.residency
    if asked != "auto":
        return asked == "stream"
    return largest_window(setup) * setup.spec.seq_len >= LOADED_FOR or resident.total > setup.memory_budget


def offload_to(phase: Phase, in_memory: Memory, host_bytes: int, setup: Setup) -> OffloadTo | None:
    """Return where the training state of stacks waits that aren't at work; None where all of it stays in memory.

    Args:
        in_memory: what the phase needs if all that trains stays there.
        host_bytes: of the page-locked buffers of what would wait.

    Raises:
        UsageError: a phase is to be streamed, and its precision needs a loss scaler.
    """
    training = setup.config.training
    if len(phase.live_path) < 2 or training.residency == "memory":
        return None
    on_cpu, asked = setup.device.type == "cpu", training.offload
    if training.residency == "auto" and (
        in_memory.total <= setup.memory_budget or not can_be_streamed(phase, setup) or (on_cpu and asked == "memory")
    ):
        return None
    if not can_be_streamed(phase, setup):
        raise UsageError(
            f'training.residency = "stream": phase "{phase.name}" trains several stacks, and a precision of them '
            'scales the loss, which needs all gradients at once. Take "bf16" or "fp32" in place of "fp16".'
        )
    if asked != "auto":
        return asked
    if on_cpu:  # the device's memory is the host's
        return "disk"
    return "memory" if host_bytes <= memory().free else "disk"


def can_be_streamed(phase: Phase, setup: Setup) -> bool:
    """Return whether what trains can be streamed: no stack that a step runs scales its loss."""
    formats = setup.implementations.formats
    return all(
        formats.precision(stack, "active" if stack in phase.trains else "trunk").loss_scaler(setup.device) is None
        for stack in phase.live_path
    )
