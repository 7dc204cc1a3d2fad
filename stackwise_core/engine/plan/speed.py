"""Estimate of the time of phases, from a short measurement of the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from attrs import frozen
from torch.nn.functional import linear

from stackwise_core.engine.estimates.memory_estimate import step_activations
from stackwise_core.engine.phases.phase_steps import predicted_share
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.interfaces.precision import Precision

LONG_ENOUGH = 0.05
"""Seconds of a measurement, of which there are two."""
LARGEST = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the product that is timed: larger ones are as fast, and take their time."""
COPIED_BYTES = 1 << 25
ACTIVATION_PASSES = 6
"""Bytes that a step copies, as a multiple of those that it keeps for its backward pass: made, read, and the same for
gradients; norms and activation functions read and write what matrix products don't touch."""
OPTIMIZER_BYTES = 28
"""Bytes that an update moves for each weight: gradient, two moments, the weight itself."""
STREAMED_PASSES = 3
"""Times that a step moves what waits while a phase is streamed: weights are read thrice and written once, the rest is
read and written. From a disk's cache; a cold disk is slower."""


@frozen
class Speed:
    """Speed of a device."""

    operations: float
    """Floating-point operations a second, in matrix products of the shape and format of a block's."""
    copied: float
    """Bytes copied a second."""


def measure_speed(setup: Setup, dtype: torch.dtype) -> Speed:
    """Measure the device for a tenth of a second or so; once in a process for the same shape, format and threads.

    Args:
        dtype: that matrix products compute in.
    """
    most, spec = LARGEST[setup.device.type], setup.spec
    rows = setup.config.training.batch_size * spec.seq_len
    shape = min(rows, most), min(spec.d_model, most), min(spec.d_ff, most)
    threads = torch.get_num_threads()
    return Speed(_operations(setup.device, dtype, shape, threads), _copied(setup.device, threads))


def phase_seconds(planned: PhasePlan, setup: Setup, speed: Speed) -> float:
    """Estimate the time of a phase: matrix products and what moves between them, boundaries at the speed of steps."""
    spec = setup.spec
    share = predicted_share(planned.phase, setup)
    a_sequence = step_activations(planned.phase, spec, spec.seq_len, share, setup)
    moved = ACTIVATION_PASSES * a_sequence * planned.tokens / spec.seq_len
    moved += OPTIMIZER_BYTES * planned.trainable_parameters * planned.steps
    moved += STREAMED_PASSES * planned.offloaded * planned.steps
    in_steps = planned.step_flops / speed.operations + moved / speed.copied
    return in_steps * planned.flops / planned.step_flops


def computes_in(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the format of a matrix product under a precision."""
    ones = torch.ones(16, 16, dtype=torch.float32, device=device)
    with torch.no_grad(), precision.autocast(device):
        return linear(ones, ones).dtype


@cache
def _operations(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], threads: int) -> float:
    rows, width, inner = shape
    hidden = torch.full((rows, width), 0.5, dtype=dtype, device=device)
    weight = torch.full((inner, width), 0.5, dtype=dtype, device=device)
    with torch.no_grad():
        return 2 * rows * width * inner / _seconds(lambda: linear(hidden, weight), device)


@cache
def _copied(device: torch.device, threads: int) -> float:
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return COPIED_BYTES / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Measure the time of a piece of work: the shortest of a few batches, since others may use the machine."""

    def timed(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return max(time.perf_counter() - began, 1e-9) / times

    timed(1)  # the first one loads kernels and starts threads
    once = timed(1)
    times = max(1, round(LONG_ENOUGH / 4 / once))
    batches = [timed(times) for _ in range(4)] if once < LONG_ENOUGH else []
    return min([once, *batches])
