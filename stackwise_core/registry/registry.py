"""The registry, from declared to built: a name becomes an implementation, and that an object."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.hookspecs import API_VERSION, INTERFACES, OPTIONS
from stackwise_core.registry.blocking import normalised
from stackwise_core.registry.discovery import discover
from stackwise_core.registry.errors import (
    AmbiguousImplementation,
    BlockedPlugin,
    BrokenPlugin,
    FailedImplementation,
    MissingPackages,
    NotInstalled,
    OtherHookApi,
    UnknownImplementation,
    WrongDevice,
)
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.registry.nearest import nearest
from stackwise_core.registry.official import OFFICIAL
from stackwise_core.registry.records import Declared, Plugin
from stackwise_core.registry.working_directory import kept_working_directory


@frozen
class Registry:
    """The plugins of one run."""

    plugins: list[Plugin]
    """All that were found: declared, broken and blocked ones."""

    @classmethod
    def discover(
        cls,
        *,
        select: Sequence[str] = (),
        files: Sequence[Path] = (),
        environ: Mapping[str, str] | None = None,
    ) -> "Registry":
        """Find the installed plugins and the local files, and load each by itself.

        Args:
            select: values of ``-p``: ``"no:NAME"`` blocks an entry point or a distribution before it is imported;
                ``"NAME"`` loads it although ``STACKWISE_PLUGIN_AUTOLOAD=0`` loads no other.
            files: local plugin files, each imported as the module of its stem.
            environ: the environment; by default the process's own.

        Raises:
            UsageError: a file or a selected name isn't there, or a file's name is taken by another module. A plugin
                that fails is no error here: it is recorded as broken.
        """
        return cls(discover(select, files, os.environ if environ is None else environ))

    def implementations(self, hook: str) -> list[Declared]:
        """List everything that can be asked for at a hook, sorted by distribution, in each plugin's own order."""
        usable = (plugin for plugin in self.plugins if plugin.state == "declared")
        return [declared for plugin in usable for declared in plugin.declared if declared.hook == hook]

    def names(self, hook: str) -> list[str]:
        """Return all names and aliases that can be asked for at a hook, in alphabetical order."""
        return sorted(set(_names(self.implementations(hook))))

    def resolve(self, hook: str, use: str) -> Declared:
        """Return the implementation of ``use = "name"`` or ``use = "distribution:name"``; an alias is a name too.

        Raises:
            UnknownImplementation: nobody has the name.
            AmbiguousImplementation: several distributions have it.
            UnavailableError: it is known, but not installed, blocked, broken, of another hook API, or lacks a package.
        """
        distribution, name = _split(use)
        matches = [each for each in self.implementations(hook) if _means(distribution, name, each)]
        if not matches:
            raise self._missing(hook, use)
        if len(matches) > 1:
            raise AmbiguousImplementation(hook, use, matches)
        obstacle = _obstacle(matches[0])
        if obstacle:
            raise obstacle
        return matches[0]

    def named(self, use: str) -> list[Declared]:
        """List everything that ``name`` or ``distribution:name`` means, whatever the hook, ready or not.

        Raises:
            UnavailableError: it is known, but not installed, blocked or broken.
            UsageError: nobody has the name; with the nearest one.
        """
        distribution, name = _split(use)
        everything = [declared for hook in INTERFACES for declared in self.implementations(hook)]
        matches = [each for each in everything if _means(distribution, name, each)]
        if matches:
            return matches
        for hook in INTERFACES:
            if name in OFFICIAL[hook]:
                raise self._missing(hook, use)
        for plugin in self.plugins:
            if plugin.problem and use in {plugin.name, plugin.distribution, *_names(plugin.declared)}:
                raise _unavailable(use, plugin)
        close = nearest(use, _full_names(everything) if distribution else _names(everything))
        guess = f' Did you mean "{close}"?' if close else ""
        raise UsageError(f'no plugin has the name "{use}".{guess} "stackwise plugins" lists them all.')

    def state(self, declared: Declared) -> str:
        """Return in a word or two whether ``use =`` its name or an alias would work: ``"ready"``, or the obstacle."""
        obstacle = _obstacle(declared)
        if obstacle:
            return obstacle.state
        others = _names(other for other in self.implementations(declared.hook) if other != declared)
        shared = [name for name in declared.names if name in others]
        if not shared:
            return "ready"
        state = AmbiguousImplementation.state
        return state if declared.name in shared else f"{state} ({', '.join(shared)})"

    def options_class(self, declared: Declared) -> type:
        """Import the class of an implementation's options.

        Raises:
            FailedImplementation: it can't be imported, is no attrs class, or not a subclass of its hook's options.
        """
        target = declared.implementation.options
        options = _imported(declared, "options", target)
        if not isinstance(options, type) or not attrs.has(options):
            raise FailedImplementation(declared, "options", f"{target} is no attrs class")
        base = OPTIONS.get(declared.hook)
        if base and not issubclass(options, _attribute(base)):
            raise FailedImplementation(declared, "options", f"{target} is no subclass of {base.replace(':', '.')}")
        return options

    def build(self, declared: Declared, options: object, *, device: str | None = None) -> Any:
        """Import an implementation's factory and make the object.

        Args:
            declared: from :meth:`resolve`.
            options: an instance of :meth:`options_class`.
            device: such as ``"cuda"`` or ``"cuda:0"``; None where no device matters.

        Raises:
            WrongDevice: the implementation doesn't run on the device.
            FailedImplementation: the factory can't be imported, isn't a subclass of the hook's interface, or raised.
            StackwiseError: the factory's own, as it is.
        """
        if device is not None and device.partition(":")[0] not in declared.implementation.devices:
            raise WrongDevice(declared, device)
        target = declared.implementation.factory
        factory = _imported(declared, "factory", target)
        interface = _attribute(INTERFACES[declared.hook])
        if not isinstance(factory, type) or not issubclass(factory, interface):
            raise FailedImplementation(
                declared, "factory", f"{target} is no subclass of {INTERFACES[declared.hook].replace(':', '.')}"
            )
        try:
            with foreign_code(), kept_working_directory():
                built = factory(options)
            # Whatever class it is: an attrs class may be frozen.
            object.__setattr__(built, "origin", declared.origin)
            return built
        except StackwiseError:
            raise
        except (Exception, SystemExit) as error:
            raise FailedImplementation(declared, "build", f"{type(error).__name__}: {error}") from error

    def _missing(self, hook: str, use: str) -> StackwiseError:
        """Return the error that says why a name has no usable implementation."""
        distribution, name = _split(use)
        official = OFFICIAL[hook].get(name)
        package = distribution or official
        unusable = [plugin for plugin in self.plugins if plugin.problem]
        certain = [
            plugin for plugin in unusable if any(each.hook == hook and name in each.names for each in plugin.declared)
        ]
        likely = [plugin for plugin in unusable if _seems_to_have(plugin, name, package)]
        for plugin in (*certain, *likely):
            if distribution in (None, normalised(plugin.distribution)):
                return _unavailable(f'{hook} "{use}"', plugin)
        if official and distribution in (None, official):
            installed = (plugin for plugin in self.plugins if normalised(plugin.distribution) == official)
            return NotInstalled(hook, use, official, next(installed, None))
        return self._unknown(hook, use, unusable)

    def _unknown(self, hook: str, use: str, unusable: Sequence[Plugin]) -> UnknownImplementation:
        distribution, name = _split(use)
        declared = self.implementations(hook)
        known = self.names(hook)
        if distribution:
            close = nearest(use, _full_names(declared))
        else:
            close = nearest(name, known) or nearest(name, OFFICIAL[hook])
        note = ""
        if close in OFFICIAL[hook] and close not in known:
            note += f' "{close}" needs the package {OFFICIAL[hook][close]}.'
        elsewhere = [other for other in INTERFACES if name in _names(self.implementations(other))]
        if elsewhere and hook not in elsewhere:
            note += f' "{name}" is a name of {" and ".join(elsewhere)}.'
        if unusable:
            note += f" Not loaded: {', '.join(f'{plugin.package} ({plugin.state})' for plugin in unusable)}."
        return UnknownImplementation(hook, use, known, close, note)


def _unavailable(asked: str, plugin: Plugin) -> UnavailableError:
    """Return the error for a broken or blocked plugin that something needs."""
    return BlockedPlugin(asked, plugin) if plugin.state == "blocked" else BrokenPlugin(asked, plugin)


def _split(use: str) -> tuple[str | None, str]:
    distribution, colon, name = use.rpartition(":")
    return (normalised(distribution) if colon else None), name


def _means(distribution: str | None, name: str, declared: Declared) -> bool:
    return name in declared.names and distribution in (None, normalised(declared.distribution))


def _names(declared: Iterable[Declared]) -> list[str]:
    return [name for each in declared for name in each.names]


def _full_names(declared: Iterable[Declared]) -> list[str]:
    return [f"{each.distribution}:{name}" for each in declared for name in each.names]


def _seems_to_have(plugin: Plugin, name: str, package: str | None) -> bool:
    """Return whether a plugin that never declared anything is the one that a name was meant to come from."""
    if package is not None:
        return normalised(plugin.distribution) == package
    words = {plugin.name, *re.split(r"[-_.]", plugin.distribution)}
    return name in words or (plugin.local and not plugin.declared)


def _obstacle(declared: Declared) -> OtherHookApi | MissingPackages | None:
    if declared.implementation.api != API_VERSION:
        return OtherHookApi(declared)
    missing = [package for package in declared.implementation.packages if not _importable(package)]
    return MissingPackages(declared, missing) if missing else None


def _importable(package: str) -> bool:
    # Looking for "a.b" would import "a", so only that is looked for.
    top = package.partition(".")[0]
    return sys.modules.get(top) is not None or importlib.util.find_spec(top) is not None


def _imported(declared: Declared, stage: str, target: str) -> Any:
    try:
        with foreign_code(), kept_working_directory():
            return _attribute(target)
    except (Exception, SystemExit) as error:
        raise FailedImplementation(declared, stage, f"{target}: {type(error).__name__}: {error}") from error


def _attribute(target: str) -> Any:
    module, _, qualified_name = target.partition(":")
    value: Any = importlib.import_module(module)
    for name in qualified_name.split("."):
        value = getattr(value, name)
    return value
