"""Environment of a run: versions of the software that it uses, and the device."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from stackwise_core.config.model import Config
from stackwise_core.engine.runs.software import software
from stackwise_core.hookspecs import INTERFACES
from stackwise_core.registry import Registry


def environment(config: Config, registry: Registry, device: torch.device) -> dict[str, object]:
    """Return the run's environment: versions of the core, its plugins and torch, and the device."""
    return {
        **software(config, registry, INTERFACES),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": metadata.version("safetensors"),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """Return what computes: the GPU's model, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
