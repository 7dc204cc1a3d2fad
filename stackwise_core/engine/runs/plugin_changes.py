"""Plugins that aren't as they were when a run was made."""

from __future__ import annotations

from stackwise_core.config.choices import RACK_HOOKS
from stackwise_core.config.model import Config
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.software import changed_plugins, plugins_of
from stackwise_core.errors import StackwiseError
from stackwise_core.registry import Registry
from stackwise_core.run_files.names import ENVIRONMENT


def plugin_changes(directory: RunDirectory, config: Config, registry: Registry) -> tuple[str, ...]:
    """Return what to say of plugins that a finished rack computes with and that differ from its run's.

    What somebody chose in place of the run's own, as another precision, isn't compared.
    """
    try:
        before = directory.read_json(ENVIRONMENT)["plugins"]
        chosen = plugins_of(config, registry, RACK_HOOKS)
        now = {where: each for where, each in chosen.items() if where in before and each["use"] == before[where]["use"]}
    except (StackwiseError, LookupError, TypeError, AttributeError):
        return (f"{directory.path / ENVIRONMENT} can't be read, and so it isn't known whether plugins have changed.",)
    return tuple(f"{change} since the run: numbers may differ." for change in changed_plugins(before, now))
