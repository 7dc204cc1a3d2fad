"""Differences between the configuration that a run began with and the one that it is resumed with."""

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from stackwise_core.config.contents import SOURCE, content
from stackwise_core.config.dump import plain
from stackwise_core.config.model import Config
from stackwise_core.registry import Registry

ANY_TIME = frozenset(
    {
        "data.workers",
        "run.log_every",
        "run.threads",
        "training.boundaries",
        "training.max_bad_steps",
        "training.memory_budget",
        "training.offload",
        "training.residency",
    }
)
"""Keys outside ``[checkpoint]`` that a resumed run may change, since no weight depends on them; on the threads
only the last bits of sums do, as on the machine."""
FREE = frozenset({"run.plugins", "data.tokens_directory", "cache_backend.directory"})
"""Keys that say where something is, and nothing else. What a plugin file computes is the environment's to compare."""
CACHE = frozenset({"capacity", "keep", "keep_time_steps"})
"""Keys of ``[cache_backend]`` that it may."""
EVALUATION = frozenset({"draws", "bands", "sequences"})
"""Keys of ``[evaluation]`` that it may, unless a phase may end early by what is measured."""


@frozen
class Change:
    """A key and its two values, None where it wasn't set."""

    key: str
    before: Any
    now: Any
    sound: bool
    """Whether the resulting weights don't depend on the key."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(
    before: Config, now: Config, registry: Registry, known: Mapping[str, str] = MappingProxyType({})
) -> list[Change]:
    """Return the keys whose values differ, in alphabetical order. What a run chooses itself counts as unchanged.

    Paths are compared by their content. The place of a text doesn't count: its fingerprint is in the plan.

    Args:
        registry: whose formats know the checkpoint that a rack starts from.
        known: by the dotted key of a path, the hash of what was there before.
    """
    now = with_choices_of(before, now)
    old, new = _flat(plain(before)), _flat(plain(now))
    leads_to = {key: content(key, str(new[key]), registry) for key in known if key in new}
    return [
        Change(key, old.get(key), new.get(key), _is_sound(key, now))
        for key in sorted(old.keys() | new)
        if key not in FREE and not _is_same(key, old.get(key), new.get(key), known.get(key), leads_to.get(key))
    ]


def _is_same(key: str, before: Any, now: Any, known: str | None, found: str | None) -> bool:
    """Return whether a key's values mean the same.

    Args:
        known: the hash of what was at the path of before.
        found: the hash of what is at the path of now.
    """
    if known is not None and key != SOURCE:
        return known == found
    if before == now or (known is not None and known == found):
        return True
    both = isinstance(before, str) and isinstance(now, str) and os.path.isabs(before) and os.path.isabs(now)
    return both and (is_text(key) or os.path.realpath(before) == os.path.realpath(now))


def is_text(key: str) -> bool:
    """Return whether a dotted key names a text."""
    return re.fullmatch(r"data\.(corpus|validation|sources\..+\.corpus)(\..+)?", key) is not None


def with_choices_of(before: Config, now: Config) -> Config:
    """Return a configuration with what it leaves to the run, as another one chose it when it began.

    That is ``training.window``, ``training.chunk_tokens``, and the division of ``rack.blocks`` into stacks.
    """
    left_out = [name for name in ("window", "chunk_tokens") if getattr(now.training, name) is None]
    chosen = {name: getattr(before.training, name) for name in left_out}
    now = evolve(now, training=evolve(now.training, **chosen))
    if now.rack.blocks_per_stack == "auto" and now.rack.blocks in (None, sum(before.rack.stack_blocks)):
        now = evolve(now, rack=now.rack.divided(before.rack.stack_blocks))
    return now


def _is_sound(key: str, config: Config) -> bool:
    table, _, name = key.partition(".")
    if table == "evaluation":
        return name in EVALUATION and config.training.patience is None
    return table in ("checkpoint", "tracker") or key in ANY_TIME or (table == "cache_backend" and name in CACHE)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "(not set)"
    return str(value).lower() if isinstance(value, bool) else repr(value)
