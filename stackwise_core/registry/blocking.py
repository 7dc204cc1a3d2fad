"""Choice of the plugins that are left out before anything of them is imported."""

import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from stackwise_core.errors import UsageError
from stackwise_core.registry.nearest import nearest
from stackwise_core.registry.records import Plugin, Problem

DISABLE = "STACKWISE_DISABLE_PLUGINS"
AUTOLOAD = "STACKWISE_PLUGIN_AUTOLOAD"
_BLOCK = "no:"
CORE = "stackwise-core"
"""The distribution whose own implementations are there without being asked for."""


def normalised(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@frozen
class Blocking:
    """Settings of ``-p`` and the environment about plugins, by entry point or by distribution."""

    selected: frozenset[str]
    blocked: frozenset[str]
    disabled: frozenset[str]
    autoload: bool

    @classmethod
    def read(cls, select: Sequence[str], environ: Mapping[str, str]) -> "Blocking":
        """Read the values of ``-p`` and the two environment variables."""
        disabled = environ.get(DISABLE, "").split(",")
        return cls(
            selected=frozenset(normalised(value) for value in select if not value.startswith(_BLOCK)),
            blocked=frozenset(normalised(value.removeprefix(_BLOCK)) for value in select if value.startswith(_BLOCK)),
            disabled=frozenset(normalised(name.strip()) for name in disabled if name.strip()),
            autoload=_switch(environ.get(AUTOLOAD, "1")),
        )

    def problem(self, plugin: Plugin) -> Problem | None:
        """Return why a plugin is left out; None where it is loaded. The command line beats the environment."""
        names = {normalised(plugin.name), normalised(plugin.distribution)}
        if names & self.blocked:
            return Problem("block", f"blocked by -p no:{min(names & self.blocked)}", "Leave that out to load it.")
        if names & self.selected:
            return None
        if names & self.disabled:
            return Problem("block", f"blocked by {DISABLE}", f"-p {plugin.name} loads it.")
        if not self.autoload and not plugin.local and normalised(plugin.distribution) != CORE:
            return Problem("block", f"blocked by {AUTOLOAD}=0", f"-p {plugin.name} loads it.")
        return None

    def check_selected(self, names: Iterable[str]) -> None:
        """Refuse a ``-p NAME`` that is none of the names.

        Raises:
            UsageError: with the nearest name.
        """
        known = {normalised(name): name for name in names}
        for unknown in sorted(self.selected - known.keys()):
            close = nearest(unknown, known)
            guess = f' Did you mean "{known[close]}"?' if close else ""
            found = ", ".join(sorted(known.values())) or "none"
            raise UsageError(
                f"-p {unknown}: no plugin or distribution of that name is installed.{guess} Found: {found}"
            )


def _switch(value: str) -> bool:
    if value.lower() in ("0", "false", "no", "off"):
        return False
    if value.lower() in ("", "1", "true", "yes", "on"):
        return True
    raise UsageError(f'{AUTOLOAD} is "{value}"; expected 0 or 1')
