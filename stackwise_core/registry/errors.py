"""Errors of a name that can't be used. ``state`` is the short form for the listing."""

from collections.abc import Sequence

from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.hookspecs import API_VERSION
from stackwise_core.registry.records import Declared, Plugin


class UnknownImplementation(UsageError):
    """Error for a name that no known plugin has."""

    def __init__(self, hook: str, use: str, known: Sequence[str], nearest: str | None, note: str = "") -> None:
        guess = f' Did you mean "{nearest}"?' if nearest else ""
        installed = f" Installed: {', '.join(known)}." if known else f" No {hook} is installed."
        super().__init__(f'unknown {hook} "{use}".{guess}{installed}{note}')
        self.hook, self.use, self.known, self.nearest = hook, use, list(known), nearest


class AmbiguousImplementation(UsageError):
    """Error for a name that several distributions have."""

    state = "ambiguous"

    def __init__(self, hook: str, use: str, candidates: Sequence[Declared]) -> None:
        packages = " and ".join(declared.package for declared in candidates)
        names = [f"{declared.distribution}:{use.rpartition(':')[2]}" for declared in candidates]
        choices = " or ".join(f"stackwise {name}" if hook == "command" else f'use = "{name}"' for name in names)
        super().__init__(f'{hook} "{use}" is in {packages}. Write {choices}.')
        self.hook, self.use, self.candidates = hook, use, list(candidates)


class NotInstalled(UnavailableError):
    """Error for a name of one of our packages, which isn't there, or only in a version without it."""

    def __init__(self, hook: str, use: str, package: str, installed: Plugin | None) -> None:
        if installed is None:
            reason = f"needs the package {package}, which is not installed: pip install {package}"
        else:
            reason = f"is not in {installed.package}; a later version has it: pip install --upgrade {package}"
        super().__init__(f'{hook} "{use}" {reason}')
        self.hook, self.use, self.package = hook, use, package


class BlockedPlugin(UnavailableError):
    """Error for a name of a plugin that was blocked before it was imported."""

    def __init__(self, asked: str, plugin: Plugin) -> None:
        super().__init__(f"{asked}: {plugin.complaint}")
        self.plugin = plugin


class BrokenPlugin(UnavailableError):
    """Error for a name of a plugin that couldn't be loaded; its own exception is the cause."""

    def __init__(self, asked: str, plugin: Plugin) -> None:
        super().__init__(f"{asked}: {plugin.complaint}")
        self.plugin = plugin
        self.__cause__ = plugin.problem.exception if plugin.problem else None


class OtherHookApi(UnavailableError):
    """Error for an implementation that was written for another version of the hooks."""

    def __init__(self, declared: Declared) -> None:
        api = declared.implementation.api
        update = "stackwise-core" if api > API_VERSION else declared.distribution
        super().__init__(
            f'{declared.hook} "{declared.name}" of {declared.package} is written for version {api} of the hook API; '
            f"this Stackwise has version {API_VERSION}. A later {update} may help."
        )
        self.state = f"other API ({api})"


class MissingPackages(UnavailableError):
    """Error for an implementation whose needed modules can't be imported."""

    def __init__(self, declared: Declared, missing: Sequence[str]) -> None:
        names = ", ".join(missing)
        super().__init__(
            f'{declared.hook} "{declared.name}" of {declared.package} needs {names}, which '
            f"{'is' if len(missing) == 1 else 'are'} not installed"
        )
        self.state = f"needs {names}"
        self.missing = list(missing)


class WrongDevice(UnavailableError):
    """Error for an implementation that doesn't run on the device."""

    def __init__(self, declared: Declared, device: str) -> None:
        super().__init__(
            f'{declared.hook} "{declared.name}" of {declared.package} runs on '
            f"{', '.join(declared.implementation.devices) or 'no device'}, not on {device}"
        )


class FailedImplementation(UnavailableError):
    """Error of a plugin whose own code raised, or doesn't match its declaration."""

    def __init__(self, declared: Declared, stage: str, reason: str) -> None:
        super().__init__(
            f'{declared.hook} "{declared.name}" failed (plugin "{declared.plugin}" of {declared.package}, '
            f"stage: {stage}): {reason}"
        )
        self.declared, self.stage = declared, stage
