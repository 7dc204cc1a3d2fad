"""Environment of a run: versions of the software that it uses, and the device."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from stackwise_core import __version__
from stackwise_core.config.model import Config
from stackwise_core.engine.runs.software import packages_of, plugins_of
from stackwise_core.registry import Registry
from stackwise_core.run_files.environment_file import EnvironmentFile, PluginRecord


def environment(config: Config, registry: Registry, device: torch.device) -> EnvironmentFile:
    """Return what the run runs on: versions of the core, its plugins and torch, and the device."""
    plugins = plugins_of(config, registry)
    return EnvironmentFile(
        core=__version__,
        plugins={where: PluginRecord(**plugin) for where, plugin in plugins.items()},
        packages=packages_of(config, registry),
        python=platform.python_version(),
        torch=torch.__version__,
        safetensors=metadata.version("safetensors"),
        platform=platform.platform(),
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


def device_name(device: torch.device) -> str:
    """Return what computes: the GPU's model, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
