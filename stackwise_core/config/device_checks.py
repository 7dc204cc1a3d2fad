"""Choices that don't run on the device that the configuration names."""

from collections.abc import Iterator

from stackwise_core.config.choices import choices
from stackwise_core.config.layers import KeyPath
from stackwise_core.config.model import Config
from stackwise_core.registry import Registry
from stackwise_core.registry.errors import WrongDevice


def wrong_devices(config: Config, registry: Registry) -> Iterator[tuple[KeyPath, WrongDevice]]:
    """List the keys whose implementation doesn't support ``run.device``. With ``"auto"`` the run checks it."""
    device = config.run.device
    for key, hook, choice in choices(config) if device != "auto" else ():
        declared = registry.resolve(hook, choice.use)
        if device not in declared.implementation.devices:
            yield key, WrongDevice(declared, device)
