"""What differs between the configuration that a run began with and the one that it is to go on with."""

from typing import Any

from attrs import evolve, frozen

from stackwise_core.config.dump import plain
from stackwise_core.config.model import Config

ANY_TIME = frozenset(
    {
        "run.log_every",
        "run.tensorboard",
        "run.threads",
        "data.tokens_directory",
        "training.max_bad_steps",
        "training.memory_budget",
        "training.trunk_residency",
    }
)
"""Keys outside ``[checkpoint]`` that a run may change as it goes on, since no weight depends on them; on the threads
only the last bits of sums do, as on the machine."""
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
    """Whether the weights that come out don't depend on it."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(before: Config, now: Config) -> list[Change]:
    """The keys whose values differ, in alphabetical order. A window that is left out is the one of before."""
    if now.training.window is None:
        now = with_window_of(before, now)
    old, new = _flat(plain(before)), _flat(plain(now))
    return [
        Change(key, old.get(key), new.get(key), _is_sound(key, now))
        for key in sorted(old.keys() | new)
        if old.get(key) != new.get(key)
    ]


def with_window_of(before: Config, now: Config) -> Config:
    """A configuration with another's ``training.window``, which a run settles when it begins."""
    return evolve(now, training=evolve(now.training, window=before.training.window))


def _is_sound(key: str, config: Config) -> bool:
    table, _, name = key.partition(".")
    if table == "evaluation":
        return name in EVALUATION and config.training.patience is None
    return table == "checkpoint" or key in ANY_TIME or (table == "cache_backend" and name in CACHE)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "(not set)"
    return str(value).lower() if isinstance(value, bool) else repr(value)
