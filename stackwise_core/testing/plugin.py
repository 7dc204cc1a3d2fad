"""Contract that every plugin must hold: its records describe what is there, and listing it is light."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import attrs
import pluggy

from stackwise_core import hookspecs
from stackwise_core.hookspecs import API_VERSION, INTERFACES, Implementation
from stackwise_core.testing.fresh import heavy_imports


def declared_in(module: str) -> Iterator[tuple[str, Implementation]]:
    """Yield each hook that a module implements, with each implementation that it gives.

    Raises:
        pluggy.PluginValidationError: a function marked as a hook has no hook's name.
    """
    manager = pluggy.PluginManager("stackwise")
    manager.add_hookspecs(hookspecs)
    manager.register(importlib.import_module(module))
    manager.check_pending()
    for hook in INTERFACES:
        for implementations in getattr(manager.hook, hook)():
            for implementation in implementations:
                yield hook, implementation


def target(path: str) -> Any:
    """Return the object that ``"package.module:Name"`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class PluginContract:
    """Contract of a plugin: subclass it and name the module that the entry point names."""

    hooks: str
    """Module of the hooks, such as ``"my_package.hooks"``."""

    def test_it_registers_something(self) -> None:
        """Every hook is spelt as it is specified, and each gives records of this API version."""
        found = list(declared_in(self.hooks))
        assert found
        for _, implementation in found:
            assert isinstance(implementation, Implementation)
            assert implementation.api == API_VERSION

    def test_summaries_are_one_line(self) -> None:
        """The listing has a name and a line to show for each."""
        for _, implementation in declared_in(self.hooks):
            assert implementation.name.strip() == implementation.name != ""
            assert implementation.summary.strip()
            assert len(implementation.summary.splitlines()) == 1

    def test_listing_is_light(self) -> None:
        """The hook module imports neither numpy nor torch nor transformers."""
        assert heavy_imports(f"import {self.hooks}") == []

    def test_options_are_light(self) -> None:
        """Options, which ``stackwise check`` reads, import none of them either."""
        modules = {implementation.options.partition(":")[0] for _, implementation in declared_in(self.hooks)}
        assert heavy_imports("\n".join(f"import {module}" for module in sorted(modules))) == []

    def test_factories_implement_their_hook(self) -> None:
        """Each factory is a class of the hook's interface with nothing left abstract."""
        for hook, implementation in declared_in(self.hooks):
            factory = target(implementation.factory)
            assert issubclass(factory, target(INTERFACES[hook])), implementation.factory
            assert not factory.__abstractmethods__, implementation.factory

    def test_options_explain_themselves(self) -> None:
        """Each options class is attrs, and each of its fields has a help text."""
        for _, implementation in declared_in(self.hooks):
            options = target(implementation.options)
            assert attrs.has(options), implementation.options
            silent = [field.name for field in attrs.fields(options) if not field.metadata.get("help")]
            assert silent == [], implementation.options

    def test_defaults_pass_their_checks(self) -> None:
        """An implementation can be built from its defaults, where every option has one."""
        for _, implementation in declared_in(self.hooks):
            options = target(implementation.options)
            if all(field.default is not attrs.NOTHING for field in attrs.fields(options)):
                target(implementation.factory)(options())
