"""Runs by name: ``first`` is ``runs/first``, ``runs`` being the run.directory of stackwise.toml or its default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from stackwise_core.config.errors import Problem, error_for
from stackwise_core.config.layers import Merged, PlainLayer
from stackwise_core.config.model import RunConfig
from stackwise_core.config.source_run import runs_in
from stackwise_core.config.sources import read_environment, read_files
from stackwise_core.errors import UsageError
from stackwise_core.registry.nearest import nearest
from stackwise_core.run_files.names import PLAN
from stackwise_core.words import a, found

CONFIGURATION = "stackwise.toml"
"""The file that commands read where none is named."""
_KEY = ("run", "directory")


def runs_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return the directory of runs, from stackwise.toml in the working directory or from a variable.

    Raises:
        ConfigError: stackwise.toml can't be read, or what it sets is no directory's name.
    """
    merged = Merged()
    merged.overlay(PlainLayer({"run": {"directory": attrs.fields(RunConfig).directory.default}}))
    for layer in read_files(CONFIGURATION) if os.path.isfile(CONFIGURATION) else ():
        merged.overlay(layer)
    merged.overlay(read_environment(os.environ if environ is None else environ))
    directory = merged.value(_KEY)
    if not isinstance(directory, str) or not directory:
        message = f"expected {a(str)} that names a directory, found {found(directory)}"
        raise error_for([Problem(message, ".".join(_KEY), merged.place([_KEY], "value"))])
    return Path(directory)


def run_named(name: str) -> Path:
    """Return the directory of a run that is given by its path or by its name. A path to a run wins over a name.

    A path without a run is returned unchanged: its reader reports what is missing.

    Raises:
        UsageError: it is a plain name, and there is neither such a run nor such a directory; with the nearest name.
        ConfigError: as ``runs_directory``.
    """
    path = Path(name)
    if not _is_plain(name) or os.path.isfile(path / PLAN):
        return path
    directory = runs_directory()
    if os.path.isdir(directory / name):
        return directory / name
    if os.path.lexists(path):
        return path
    near = nearest(name, [*runs_in(directory), *runs_in(Path())])
    guess = f' Did you mean "{near}"?' if near else ""
    raise UsageError(
        f'no run is called "{name}": it is neither in {directory} nor here.{guess} "stackwise runs" lists them.'
    )


def configuration_or_run_named(name: str) -> str:
    """Return the path of a configuration, or of the directory of the run of that name where there is no such file.

    Raises:
        UsageError: there is neither, and a run has a like name.
        ConfigError: as ``runs_directory``.
    """
    if not _is_plain(name) or os.path.lexists(name) or name.endswith(".toml"):
        return name
    directory = runs_directory()
    if os.path.isdir(directory / name):
        return str(directory / name)
    files = [entry.removesuffix(".toml") for entry in os.listdir() if entry.endswith(".toml")]
    near = None if nearest(name, files) else nearest(name, runs_in(directory))
    if near:
        raise UsageError(f'{name}: no such file, and no run in {directory} is called so. Did you mean "{near}"?')
    return name


def _is_plain(name: str) -> bool:
    """Return whether it could be a run's name: a single part of a path."""
    return name not in ("", os.curdir, os.pardir) and os.path.basename(name) == name
