"""The plugin files that ``[run] plugins`` and ``-p`` name: which of them are loaded, and why others aren't."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from attrs import evolve, field, frozen

from stackwise_core.config.errors import Place, Problem
from stackwise_core.config.layers import Merged
from stackwise_core.config.paths import absolute
from stackwise_core.hookspecs import Implementation
from stackwise_core.registry import Registry
from stackwise_core.registry.errors import BrokenPlugin
from stackwise_core.registry.records import Declared, Plugin
from stackwise_core.registry.records import Problem as PluginProblem
from stackwise_core.run_files.kept import Kept
from stackwise_core.system.files import sha256


@frozen
class LeftOut:
    """A file that a configuration names and that isn't loaded."""

    index: int
    """Place of the file in ``[run] plugins``."""
    path: Path
    reason: str
    help: str = ""
    declares: tuple[tuple[str, str], ...] = ()
    """Hook and name of each of its implementations, as far as they are known."""

    def problem(self, merged: Merged) -> Problem:
        """Return what is wrong with the configuration."""
        place = merged.place([("run", "plugins", self.index)], "value")
        return Problem(self.reason, f"run.plugins[{self.index}]", place, self.help)

    def plugin(self) -> Plugin:
        """Return a plugin that can't be used, so that a user who asks for what it declares is told why."""
        stem = self.path.stem
        # Never imported: the plugin has a problem.
        nothing = "none:none"
        return Plugin(
            stem,
            stem,
            None,
            str(self.path),
            declared=tuple(
                Declared(hook, Implementation(name, "Of a file that isn't loaded", nothing, nothing), stem, stem, None)
                for hook, name in self.declares
            ),
            problem=PluginProblem("block", f"not loaded: {self.reason}", self.help and f"{self.help}."),
        )


@frozen
class LocalPlugins:
    """The plugin files of a configuration."""

    named: list[Path]
    """Files of ``-p``."""
    listed: dict[Path, int] = field(factory=dict)
    """Files of ``[run] plugins`` that are loaded, with their places."""
    left_out: list[LeftOut] = field(factory=list)

    @classmethod
    def of(
        cls, merged: Merged, named: Sequence[Path], run: Path | None, kept: Kept, hooks: Collection[str] | None
    ) -> "LocalPlugins":
        """Sort out the files that a configuration names. None is loaded.

        Args:
            named: of ``-p``; in a run's configuration such a file stands in for the listed one of its name.
            run: the run's directory where the configuration is a run's, which may be somebody else's: of code that
                came with it, or that changed since, only what ``-p`` names is loaded.
            kept: what the run keeps.
            hooks: those whose implementations are needed; None: all. A file that is known to have no other isn't
                loaded.
        """
        found = cls(list(named))
        table = merged.data.get("run")
        listed = table.get("plugins") if isinstance(table, dict) else None
        layer = merged.origin(("run", "plugins"))
        if not isinstance(listed, list) or layer is None:
            return found
        for index, written in enumerate(listed):
            if not isinstance(written, str):  # refused later, with all other mistakes
                continue
            path = Path(absolute(written, layer.folder))
            if run is not None and path.stem in [each.stem for each in named]:
                continue
            copy = kept.plugins.get(path.name)
            if hooks is not None and copy is not None and not any(hook in hooks for hook, _ in copy.declares):
                continue
            left_out = _left_out(index, written, path, run, kept)
            if left_out is None:
                found.listed[path] = index
            else:
                found.left_out.append(left_out)
        return found

    def broken(self, registry: Registry, merged: Merged, *, needs_all: bool) -> Iterator[Problem]:
        """Yield those that can't be loaded: somebody named them, so they were meant to be used.

        Args:
            needs_all: whether this holds of those of ``[run] plugins``, too.
        """
        listed = {str(path.resolve()): index for path, index in self.listed.items()}
        for plugin in registry.plugins:
            if plugin.local and plugin.state == "broken":
                index = listed.get(plugin.source)
                if index is not None and not needs_all:
                    continue
                key = "" if index is None else f"run.plugins[{index}]"
                place = Place("-p") if index is None else merged.place([("run", "plugins", index)], "value")
                yield Problem(plugin.complaint, key, place, unavailable=BrokenPlugin(plugin.source, plugin))


def replaced(named: Sequence[Path], kept: Kept) -> Iterator[str]:
    """Yield a warning for each file of ``-p`` that differs from the run's copy of that name."""
    for path in named:
        copy = kept.plugins.get(path.name)
        if copy is not None and os.path.isfile(path) and sha256(path) != copy.sha256:
            yield f"{path} isn't as the run had it, which is in {copy.path}: what it computes may be something else"


def _left_out(index: int, written: str, path: Path, run: Path | None, kept: Kept) -> LeftOut | None:
    """Return why a file isn't loaded, or None if it is."""
    copy = None if run is None else kept.plugins.get(path.name)
    left_out = LeftOut(index, path, "", declares=() if copy is None else copy.declares)
    there = os.path.isfile(path)
    if there and run is not None and _brought_along(written, path, run):
        return evolve(
            left_out,
            reason=f"{path} came with the run's directory, and is not loaded unasked",
            help=f"-p {path} loads it, if you trust it",
        )
    if not there:
        help = "" if copy is None else f"-p {copy.path} loads the copy that the run keeps, if you trust it"
        return evolve(left_out, reason=f"no such file: {path}", help=help)
    if copy is not None and sha256(path) != copy.sha256:
        return evolve(
            left_out,
            reason=f"{path} has changed since the run had it",
            help=f"-p {path} loads it as it is now, -p {copy.path} as the run had it",
        )
    return None


def _brought_along(written: str, path: Path, run: Path) -> bool:
    """Return whether a plugin came with a run's directory; a run itself writes absolute paths of what is elsewhere."""
    return not os.path.isabs(written) or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run))
