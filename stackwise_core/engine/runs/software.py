"""Versions of the software that a run uses, and what changed of it since the run began; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from stackwise_core import __version__
from stackwise_core.config.choices import chosen
from stackwise_core.config.model import Config
from stackwise_core.hookspecs import INTERFACES
from stackwise_core.registry import Registry
from stackwise_core.registry.records import Declared, label
from stackwise_core.system.files import sha256

DECISIVE = tuple(hook for hook in INTERFACES if hook not in ("cache_backend", "corpus"))
"""Hooks on whose implementations a run's numbers depend: a cache gives back what was put into it, and what a corpus
gave is in the plan by its content."""
_LONGEST = 80


def software(config: Config, registry: Registry, hooks: Collection[str]) -> dict[str, object]:
    """Return versions of the core, of the plugins that a configuration chose for some hooks, and of what these need."""
    return {
        "stackwise-core": __version__,
        "plugins": plugins_of(config, registry, hooks),
        "packages": packages_of(config, registry, hooks),
    }


def packages_of(config: Config, registry: Registry, hooks: Collection[str] = INTERFACES) -> dict[str, str]:
    """Return, by name, versions of the libraries that the implementations need which are chosen for some hooks."""
    libraries = set[str]()
    for _, hook, choice in chosen(config):
        if hook in hooks:
            for package in registry.resolve(hook, choice.use).implementation.packages:
                libraries.update(metadata.packages_distributions().get(package.partition(".")[0], ()))
    return {name: metadata.version(name) for name in sorted(libraries)}


def plugins_of(config: Config, registry: Registry, hooks: Collection[str] = INTERFACES) -> dict[str, dict[str, str]]:
    """Return, by dotted key, name, distribution and version of the implementations that are chosen for some hooks."""
    return {
        where: {
            "use": declared.name,
            "distribution": declared.distribution,
            "version": declared.version or _hash_of_file(registry, declared),
        }
        for where, hook, choice in chosen(config)
        if hook in hooks
        for declared in [registry.resolve(hook, choice.use)]
    }


def _hash_of_file(registry: Registry, declared: Declared) -> str:
    """Return the hash that a local plugin has in place of a version."""
    sources = [plugin.source for plugin in registry.plugins if plugin.local]
    return sha256(next(Path(source) for source in sources if Path(source).stem == declared.distribution))


def differences(before: object, now: Mapping[str, object]) -> list[str]:
    """Return the differences from environment.json, such as ``torch: 2.13.0 -> 2.14.0``; bits may depend on them."""
    known = before if isinstance(before, dict) else {}
    found: list[str] = []
    for key, value in now.items():
        earlier = known.get(key)
        if earlier == value:
            continue
        if key == "plugins" and isinstance(value, Mapping):
            found += changed_plugins(earlier, value)
        elif key == "packages" and isinstance(value, Mapping):
            versions = earlier if isinstance(earlier, dict) else {}
            found += [
                f"{name} {_shown(versions.get(name))} -> {_shown(version)}"
                for name, version in value.items()
                if versions.get(name) != version
            ]
        else:
            found.append(f"{key}: {_shown(earlier)} -> {_shown(value)}")
    return found


def changed_plugins(before: object, now: Mapping[str, Any]) -> list[str]:
    """Return the plugins that differ from environment.json: ``stackwise-geospan 1.0 -> 1.1``, a file's name.

    Args:
        before: ``plugins`` of the file.
        now: ``plugins`` of ``software``; what it doesn't have isn't compared.
    """
    known, found = before if isinstance(before, dict) else {}, []
    for where, plugin in now.items():
        earlier = known.get(where)
        earlier = earlier if isinstance(earlier, dict) else {}
        distribution, version = plugin["distribution"], plugin["version"]
        if earlier.get("distribution") != distribution or earlier.get("use") != plugin["use"]:
            found.append(f"{where}: {_named(earlier)} -> {_named(plugin)}")
        elif earlier.get("version") != version and _is_hash(version):
            found.append(f"the file {label(distribution, None)} has changed")
        elif earlier.get("version") != version:
            found.append(f"{distribution} {_shown(earlier.get('version'))} -> {version}")
    return list(dict.fromkeys(found))


def _named(plugin: Mapping[str, Any]) -> str:
    if not plugin:
        return "unknown"
    version = plugin.get("version")
    package = label(_shown(plugin.get("distribution")), None if _is_hash(version) else _shown(version))
    return f"{_shown(plugin.get('use'))} of {package}"


def _is_hash(version: object) -> bool:
    return isinstance(version, str) and len(version) == 64


def _shown(value: object) -> str:
    """Return a value that may come from somebody else's file, on a line."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
