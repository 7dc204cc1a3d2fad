"""The hooks of Stackwise, and the record that a plugin returns from them.

A plugin's entry point in the group ``stackwise`` names a light module that imports nothing but this one:

.. code-block:: python

    from stackwise_core.hookspecs import Implementation, hookimpl

    @hookimpl
    def mask_schedule():
        factory, options = "my_package.sine:Sine", "my_package.options:SineOptions"
        return [Implementation("sine", "More time at light masks", factory, options)]
"""

from collections.abc import Iterable

import pluggy
from attrs import field, frozen

ENTRY_POINT_GROUP = "stackwise"
API_VERSION = 1

hookspec = pluggy.HookspecMarker("stackwise")
hookimpl = pluggy.HookimplMarker("stackwise")


def _tuple(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen
class Implementation:
    """One implementation of one hook, described without importing it."""

    name: str
    """Name that the TOML gives after ``use =``."""
    summary: str
    """One line for the listing."""
    factory: str
    """``"package.module:Class"``, a subclass of the hook's interface; imported when used, not before."""
    options: str = "stackwise_core.options:NoOptions"
    """``"package.module:Options"``, an attrs class in a module that doesn't import torch; by default it has none."""
    api: int = API_VERSION
    """The version of the hook API that it was written for."""
    devices: tuple[str, ...] = field(default=("cpu", "cuda"), converter=_tuple)
    """Device types that it runs on."""
    packages: tuple[str, ...] = field(default=(), converter=_tuple)
    """Importable modules that it needs at run time."""
    aliases: tuple[str, ...] = field(default=(), converter=_tuple)
    """Other names that ``use =`` may say."""


@hookspec
def mask_schedule() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare courses of the mask fraction: :class:`stackwise_core.interfaces.mask_schedule.MaskSchedule`."""


@hookspec
def precision() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare precisions, formats of a stack's weights: :class:`stackwise_core.interfaces.precision.Precision`."""


@hookspec
def adapter() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare adapters, small weights on a frozen stack: :class:`stackwise_core.interfaces.adapter.Adapter`."""


@hookspec
def cache_backend() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare stores of boundaries: :class:`stackwise_core.interfaces.cache_backend.CacheBackend`."""


@hookspec
def trainer_mode() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare plans of a rack's phases: :class:`stackwise_core.interfaces.trainer_mode.TrainerMode`."""


@hookspec
def optimizer() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare optimizers of what trains (provisional): :class:`stackwise_core.interfaces.optimizer.Optimizer`."""


@hookspec
def tracker() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare receivers of a run's measurements (provisional): :class:`stackwise_core.interfaces.tracker.Tracker`."""


@hookspec
def objective() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare losses to train on (provisional): :class:`stackwise_core.interfaces.objective.Objective`."""


@hookspec
def command() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare commands of ``stackwise`` (provisional): :class:`stackwise_core.interfaces.command.Command`."""


@hookspec
def checkpoint_format() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare formats of other programs' checkpoints (provisional):
    :class:`stackwise_core.interfaces.checkpoint_format.CheckpointFormat`.
    """


@hookspec
def corpus() -> list[Implementation]:  # type: ignore[empty-body]
    """Declare sources of text (provisional): :class:`stackwise_core.interfaces.corpus.Corpus`."""


# The hooks by name, in the order of the listing, and the interface that each one's factories implement.
INTERFACES = {
    "mask_schedule": "stackwise_core.interfaces.mask_schedule:MaskSchedule",
    "precision": "stackwise_core.interfaces.precision:Precision",
    "adapter": "stackwise_core.interfaces.adapter:Adapter",
    "cache_backend": "stackwise_core.interfaces.cache_backend:CacheBackend",
    "trainer_mode": "stackwise_core.interfaces.trainer_mode:TrainerMode",
    "optimizer": "stackwise_core.interfaces.optimizer:Optimizer",
    "tracker": "stackwise_core.interfaces.tracker:Tracker",
    "objective": "stackwise_core.interfaces.objective:Objective",
    "command": "stackwise_core.interfaces.command:Command",
    "checkpoint_format": "stackwise_core.interfaces.checkpoint_format:CheckpointFormat",
    "corpus": "stackwise_core.interfaces.corpus:Corpus",
}

# The class that options of a hook's implementations subclass, where the core reads what they have in common.
OPTIONS = {
    "cache_backend": "stackwise_core.interfaces.cache_backend:CacheOptions",
    "objective": "stackwise_core.interfaces.objective:ObjectiveOptions",
}

PROVISIONAL = frozenset({"optimizer", "tracker", "objective", "command", "checkpoint_format", "corpus"})
"""Hooks whose contract may change without a new ``API_VERSION``; the listing marks them."""
