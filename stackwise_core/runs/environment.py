"""What a run runs on: versions of the software that it uses, and the device."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path

import torch

from stackwise_core import __version__
from stackwise_core.config.choices import chosen
from stackwise_core.config.model import Config
from stackwise_core.files import sha256
from stackwise_core.hookspecs import INTERFACES
from stackwise_core.registry import Registry
from stackwise_core.registry.records import Declared


def environment(config: Config, registry: Registry, device: torch.device) -> dict[str, object]:
    """What the run ran on: versions of the core, its plugins and torch, and the device."""
    return {
        **software(config, registry, INTERFACES),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": metadata.version("safetensors"),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def software(config: Config, registry: Registry, hooks: Collection[str]) -> dict[str, object]:
    """Versions of the core, of the plugins that a configuration chose for some hooks, and of what these need."""
    plugins, libraries = {}, set[str]()
    for where, hook, choice in chosen(config):
        if hook in hooks:
            declared = registry.resolve(hook, choice.use)
            plugins[where] = {
                "use": declared.name,
                "distribution": declared.distribution,
                "version": declared.version or _hash_of_file(registry, declared),
            }
            for package in declared.implementation.packages:
                libraries.update(metadata.packages_distributions().get(package.partition(".")[0], ()))
    packages = {name: metadata.version(name) for name in sorted(libraries)}
    return {"stackwise-core": __version__, "plugins": plugins, "packages": packages}


def _hash_of_file(registry: Registry, declared: Declared) -> str:
    """What a local plugin has in place of a version."""
    sources = [plugin.source for plugin in registry.plugins if plugin.local]
    return sha256(next(Path(source) for source in sources if Path(source).stem == declared.distribution))


def device_name(device: torch.device) -> str:
    """What computes: the GPU's model, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def differences(before: object, now: Mapping[str, object]) -> list[str]:
    """What isn't as a run's environment.json has it, such as ``torch: '2.13.0' -> '2.14.0'``; bits may depend on it."""
    known = before if isinstance(before, dict) else {}
    return [
        f"{key}: {known.get(key, 'unknown')!r:.80} -> {value!r:.80}"
        for key, value in now.items()
        if known.get(key) != value
    ]
