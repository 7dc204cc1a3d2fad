"""Commands of plugins: listed by what they say of themselves, imported when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from stackwise_core.cli.arguments import selected_plugins
from stackwise_core.cli.shown_paths import shown
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.command import Command, EndedRun, NextStep
from stackwise_core.registry import (
    AmbiguousImplementation,
    Declared,
    FailedImplementation,
    Registry,
    UnknownImplementation,
)
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.registry.working_directory import kept_working_directory

HOOK = "command"
_REGISTRY = f"{__name__}.registry"
"""The key of click's notes under which the plugins of this command line are."""


def find_plugins(selected: Sequence[str]) -> Registry:
    """Find the installed plugins, and the local ones that ``-p`` names.

    Raises:
        UsageError: a file or a plugin that was named isn't there.
    """
    return Registry.discover(
        select=[value for value in selected if not value.endswith(".py")],
        files=[Path(value) for value in selected if value.endswith(".py")],
    )


def _registry(context: click.Context) -> Registry:
    """Return the plugins that this command line may use, found once."""
    if _REGISTRY not in context.meta:
        context.meta[_REGISTRY] = find_plugins(selected_plugins(context))
    registry: Registry = context.meta[_REGISTRY]
    return registry


def names(context: click.Context) -> list[str]:
    """Return what plugins' commands are called by."""
    registry = _registry(context)
    return [_name(registry, each) for each in registry.implementations(HOOK)]


def described(context: click.Context, name: str) -> Described | None:
    """Describe a plugin's command without importing it; None where no plugin has such a one."""
    registry = _registry(context)
    for each in registry.implementations(HOOK):
        if name in (*each.names, each.full_name):
            return Described(registry, name, each.implementation.summary)
    return None


def refuse_unavailable(context: click.Context, name: str) -> None:
    """Refuse a known command that isn't available.

    Raises:
        UnavailableError: its plugin isn't installed, is blocked, or is broken.
    """
    try:
        _registry(context).resolve(HOOK, name)
    except UnknownImplementation:
        return


class Described(click.Command):
    """A plugin's command as help lists it."""

    def __init__(self, registry: Registry, name: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self._registry = registry

    def made(self) -> click.Command:
        """Import the command.

        Raises:
            UsageError: several plugins have the name.
            UnavailableError: it lacks a package, or the plugin's own code fails.
        """
        assert self.name is not None
        declared = self._registry.resolve(HOOK, self.name)
        command = _build(self._registry, declared)
        try:
            with foreign_code(), kept_working_directory():
                made = command.make()
        except StackwiseError:
            raise
        except (Exception, SystemExit) as error:
            raise FailedImplementation(declared, "make", f"{type(error).__name__}: {error}") from error
        if not isinstance(made, click.Command):
            raise FailedImplementation(
                declared, "make", f"make() returned {type(made).__name__}; expected a click command"
            )
        return made


def _build(registry: Registry, declared: Declared) -> Command:
    command: Command = registry.build(declared, registry.options_class(declared)())
    return command


def next_steps(registry: Registry, run: EndedRun) -> list[tuple[str, list[str]]]:
    """Return what plugins' commands can do with a run, and the words behind ``stackwise`` that do it.

    One that fails isn't named: a run that has ended doesn't fail over advice.
    """
    steps = []
    files = {plugin.name: str(shown(Path(plugin.source))) for plugin in registry.plugins if plugin.local}
    for each in registry.implementations(HOOK):
        name = _name(registry, each)
        try:
            command = _build(registry, registry.resolve(HOOK, name))
            with foreign_code():
                step = command.next_step(run)
        except Exception:
            continue
        if isinstance(step, NextStep):
            file = ["-p", files[each.plugin]] if each.version is None else []
            steps.append((step.purpose, [*file, name, *step.arguments]))
    return steps


def _name(registry: Registry, declared: Declared) -> str:
    """Return the name of a command. Where two have the same, it includes the distribution."""
    is_shared = registry.state(declared) == AmbiguousImplementation.state
    return declared.full_name if is_shared else declared.name
