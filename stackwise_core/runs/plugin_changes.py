"""Plugins that are of another version than when a run was made."""

from __future__ import annotations

from stackwise_core.config.choices import chosen
from stackwise_core.config.model import Config
from stackwise_core.errors import StackwiseError
from stackwise_core.registry import Registry
from stackwise_core.runs.directory import RunDirectory

READING = frozenset({"precision", "adapter", "mask_schedule"})
"""Hooks whose implementations a finished rack computes with."""
ENVIRONMENT = "environment.json"


def plugin_changes(directory: RunDirectory, config: Config, registry: Registry) -> tuple[str, ...]:
    """Return what to say of installed plugins that a finished rack computes with and that aren't as its run had them.

    A plugin in a file has no version.
    """
    try:
        before = directory.read_json(ENVIRONMENT)["plugins"]
        said = {}
        for where, hook, choice in chosen(config):
            if hook not in READING or not (known := before.get(where)):
                continue
            declared = registry.resolve(hook, choice.use)
            whose = declared.distribution
            if declared.version and known["distribution"] == whose and known["version"] != declared.version:
                said[whose] = f"{whose} {known['version']} -> {declared.version} since the run: numbers may differ."
    except (StackwiseError, LookupError, TypeError, AttributeError):
        return (f"{directory.path / ENVIRONMENT} can't be read, and so it isn't known whether plugins have changed.",)
    return tuple(said.values())
