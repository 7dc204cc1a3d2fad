"""Memory of the device: free space, and peak use."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from stackwise_core.system.machine import Room, memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def device_memory(device: torch.device) -> Room:
    """Return the memory that weights and activations have: a CUDA device's own, else what this process may use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free)
    return memory()


def reset_peak(device: torch.device) -> None:
    """Begin a new peak, where the system can: on Linux, and on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(OSError):  # a sandbox may forbid it; the peak is then the whole run's
            _CLEAR.write_text("5")  # proc(5): resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes held since the reset: allocated on a CUDA device, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
