"""Recognise the checkpoint format of a directory, among those that plugins bring."""

from pathlib import Path

from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.interfaces.checkpoint_format import CheckpointFormat
from stackwise_core.interfaces.component import origin
from stackwise_core.registry import Declared, FailedImplementation, Registry
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.registry.official import FILES_OF_FORMATS
from stackwise_core.registry.working_directory import kept_working_directory
from stackwise_core.run_files.names import PLAN

HOOK = "checkpoint_format"


def format_of(directory: Path, registry: Registry) -> CheckpointFormat:
    """Return the one format that recognises a directory. One that can't be asked counts only if no other does.

    Raises:
        UsageError: none does, or several do.
        UnavailableError: its plugin isn't there, or one that might know it is at fault.
    """
    found: list[CheckpointFormat] = []
    unasked: list[StackwiseError] = []
    declared = registry.implementations(HOOK)
    for each in declared:
        try:
            format = _with_defaults(each, registry)
            if _recognises(each, format, directory):
                found.append(format)
        except StackwiseError as error:
            unasked.append(error)
    if len(found) > 1:
        names = " and by ".join(map(origin, found))
        raise UsageError(f"{directory} can be read by {names}. Leave all but one out: -p no:PLUGIN")
    if found:
        return found[0]
    if unasked:
        raise unasked[0]
    _refuse_without_its_plugin(directory, registry)
    known = ", ".join(f"{each.name} ({each.implementation.summary})" for each in declared) or "none is installed"
    raise UsageError(
        f"expected the directory of a run or of a checkpoint, and there is no {PLAN} in {directory}, nor does any "
        f"checkpoint_format recognise it: {known}"
    )


def _with_defaults(declared: Declared, registry: Registry) -> CheckpointFormat:
    """Make a format with the options that it has by default."""
    options = registry.options_class(registry.resolve(HOOK, declared.full_name))
    try:
        made = options()
    except TypeError as error:
        raise FailedImplementation(declared, "options", f"expected a default for each: {error}") from error
    format: CheckpointFormat = registry.build(declared, made)
    return format


def _recognises(declared: Declared, format: CheckpointFormat, directory: Path) -> bool:
    try:
        with foreign_code(), kept_working_directory():
            return bool(format.recognises(directory))
    except (Exception, SystemExit) as error:
        raise FailedImplementation(declared, "recognises", f"{type(error).__name__}: {error}") from error


def _refuse_without_its_plugin(directory: Path, registry: Registry) -> None:
    """Name the package that a directory of one of our formats needs.

    Raises:
        UnavailableError: that isn't installed, or is left out.
    """
    for name, files in FILES_OF_FORMATS.items():
        if any((directory / file).is_file() for file in files):
            try:
                registry.resolve(HOOK, name)
            except UnavailableError as error:
                raise UnavailableError(f"{directory} looks like a checkpoint of {name}; {error}") from error
