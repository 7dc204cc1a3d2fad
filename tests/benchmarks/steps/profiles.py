"""Profiles of training steps: where their time goes besides matrix products."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch
from attrs import frozen
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

PRODUCTS = re.compile(r"\b(addmm|mm|bmm|baddbmm|mkldnn_linear|linear)\b|attention|gemm|cutlass|xmma|nvjet|flash|fmha")
"""Operators of a CPU and kernels of a CUDA device that are matrix products, attention included."""
LARGEST = 10

Watch = Callable[[], None]


@frozen
class Profile:
    """Shares of the time of some steps, under the profiler, which makes the host slower."""

    largest: tuple[tuple[str, float, float], ...]
    """The operators, or kernels on a CUDA device, of the most time: name, share, calls a step."""
    products: float
    """Share of matrix products and attention."""
    others: float
    """Share of all other operators."""
    idle: float
    """Share of Python and waiting on a CPU; on a CUDA device, of the time in which it had nothing to do."""


def profile_of(take: Callable[[Watch, Watch], object], steps: int, device: torch.device) -> Profile:
    """Profile some steps.

    Args:
        take: takes steps, and calls the first function when those begin that count, the second when they are over.
        steps: how many count.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    profiler, times = profile(activities=activities), list[float]()

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    def begin() -> None:
        profiler.start()
        mark()

    def end() -> None:
        mark()
        profiler.stop()

    take(begin, end)
    seconds = times[1] - times[0]
    found = [(each.key, _seconds(each, device), each.count / steps) for each in profiler.key_averages()]
    shares = sorted(((name, taken / seconds, calls) for name, taken, calls in found if taken), key=lambda e: -e[1])
    products = sum(share for name, share, _ in shares if PRODUCTS.search(name))
    others = sum(share for _, share, _ in shares) - products
    return Profile(tuple(shares[:LARGEST]), products, others, max(0.0, 1 - products - others))


def _seconds(event: FunctionEventAvg, device: torch.device) -> float:
    """Return the time of an operator itself; on a CUDA device of a kernel, and 0 for the operators that start it."""
    if device.type == "cuda":
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        return event.self_device_time_total / 1e6 if is_kernel else 0.0
    return event.self_cpu_time_total / 1e6
