"""The plugin registry: found -> declared -> resolved -> built."""

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
from stackwise_core.registry.records import Declared, Plugin, Problem
from stackwise_core.registry.registry import Registry

__all__ = [
    "AmbiguousImplementation",
    "BlockedPlugin",
    "BrokenPlugin",
    "Declared",
    "FailedImplementation",
    "MissingPackages",
    "NotInstalled",
    "OtherHookApi",
    "Plugin",
    "Problem",
    "Registry",
    "UnknownImplementation",
    "WrongDevice",
]
