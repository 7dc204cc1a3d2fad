"""From a TOML file to a checked configuration, and the registry that its plugins come from."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from cattrs.errors import BaseValidationError

from stackwise_core.config.choices import lengthen
from stackwise_core.config.convert import convert, faults
from stackwise_core.config.defaults import default_uses
from stackwise_core.config.dump import plain
from stackwise_core.config.errors import Place, Problem, ProblemsError, error_for
from stackwise_core.config.hints import instead, meant
from stackwise_core.config.layers import KeyPath, Layer, Merged, PlainLayer
from stackwise_core.config.model import Config
from stackwise_core.config.package_checks import missing_packages
from stackwise_core.config.paths import absolute, with_absolute_paths
from stackwise_core.config.source_checks import source_checks
from stackwise_core.config.source_keys import Contradicting, follow_source
from stackwise_core.config.sources import Overrides, read_environment, read_files, read_overrides
from stackwise_core.config.utf8_names import ADVICE, names_beyond_utf8, refuse_names_beyond_utf8
from stackwise_core.config.words import dotted
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.registry import Registry
from stackwise_core.registry.blocking import AUTOLOAD, DISABLE
from stackwise_core.registry.errors import BrokenPlugin


def load(
    path: str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    environ: Mapping[str, str] | None = None,
    plugins: Sequence[str] = (),
    check_source: bool = True,
    in_run: bool = False,
    more_checks: Callable[[Config], Iterable[tuple[KeyPath, StackwiseError]]] | None = None,
) -> tuple[Config, Registry]:
    """Read a configuration: defaults, then the files it extends, the file, ``STACKWISE_*`` variables, overrides.

    Args:
        path: the TOML file.
        overrides: values of ``--set``, such as ``"training.batch_size=8"``; or values by key.
        environ: the environment; by default the process's own.
        plugins: values of ``-p``: ``"no:NAME"``, ``"NAME"``, or ``"FILE.py"``, which joins ``run.plugins``.
        check_source: whether ``rack.init_from`` must be there and fit. The configuration of a run that has its weights
            already is read without: what it started from may be gone.
        in_run: whether the file is in a run's directory, which may be somebody else's: it extends no other file, and
            no code is taken from there unless ``plugins`` names it.
        more_checks: gives the keys that something else is wrong with, which only a layer above this one can tell.

    Raises:
        ConfigError: with every mistake that was found.
        ConfigUnavailable: there is no mistake, but plugins or packages that the file names aren't there.
    """
    environ = os.environ if environ is None else environ
    settings, problems = read_overrides(overrides)
    layers: list[Layer] = [
        PlainLayer(default_uses()),
        *read_files(path, alone=in_run),
        read_environment(environ),
        settings,
    ]
    merged = _merged(layers)
    registry, plugin_problems = _registry(merged, environ, plugins, Path(path).parent if in_run else None)
    if registry is None:
        raise error_for([*problems, *plugin_problems])
    config = _checked(
        merged, registry, [*problems, *plugin_problems], check_source=check_source, more_checks=more_checks
    )
    files = [absolute(value, Path.cwd()) for value in plugins if value.endswith(".py")]
    if files:  # so that the configuration of the run directory finds them
        own = config.run.plugins
        config = attrs.evolve(config, run=attrs.evolve(config.run, plugins=tuple(dict.fromkeys([*own, *files]))))
        refuse_names_beyond_utf8(plain(config))
    return config, registry


def load_run(directory: Path, *, overrides: Overrides = (), plugins: Sequence[str] = ()) -> tuple[Config, Registry]:
    """The configuration that a run wrote into its directory, whatever the environment says of other runs.

    Args:
        overrides: as ``load``.
        plugins: as ``load``.

    Raises:
        ConfigError: as ``load``.
        ConfigUnavailable: as ``load``.
    """
    environ = {name: value for name, value in os.environ.items() if name in (AUTOLOAD, DISABLE)}
    path = directory / "config.toml"
    return load(path, overrides=overrides, environ=environ, plugins=plugins, check_source=False, in_run=True)


def load_run_at_precision(
    directory: Path, precision: str, *, asked_by: str, plugins: Sequence[str] = ()
) -> tuple[Config, Registry]:
    """The configuration of a run, with a precision by name, or as TOML has one, for its trunk.

    Args:
        asked_by: what the precision was given with, for messages.

    Raises:
        ConfigError: there is no such precision, or its options are wrong.
        ConfigUnavailable: as ``load``.
    """
    load_run(directory, plugins=plugins)
    try:
        return load_run(directory, overrides=[f"precision.trunk={precision}"], plugins=plugins)
    except ProblemsError as error:  # in what was asked for, since the run's own configuration was right
        place, here = Place(f"{asked_by} {precision}"), "precision.trunk."
        raise error_for(
            [
                attrs.evolve(each, place=place, key=f"{each.key}.".removeprefix(here).removeprefix("use.").rstrip("."))
                for each in error.problems
            ]
        ) from None


def structure(data: Mapping[str, Any], registry: Registry) -> Config:
    """A configuration from a plain dict, with the checks of ``load``; relative paths are the working directory's.

    Raises:
        ConfigError: as ``load``, without places.
        ConfigUnavailable: as ``load``.
    """
    return _checked(_merged([PlainLayer(default_uses()), PlainLayer(copy.deepcopy(dict(data)))]), registry, [])


def _merged(layers: Sequence[Layer]) -> Merged:
    merged = Merged()
    for layer in layers:
        lengthen(layer.data)
        merged.overlay(layer)
    return merged


def _registry(
    merged: Merged, environ: Mapping[str, str], plugins: Sequence[str], closed: Path | None
) -> tuple[Registry | None, list[Problem]]:
    """The registry with the local plugins of ``[run] plugins`` and ``-p``; those are needed before the rest is read.

    Args:
        closed: a directory from which ``[run] plugins`` takes nothing, nor from one beside it by a relative path.
    """
    run = merged.data.get("run")
    listed: Any = run.get("plugins") if isinstance(run, dict) else None
    layer = merged.origin(("run", "plugins"))
    files: dict[Path, int] = {}
    if isinstance(listed, list) and layer:
        # What isn't a string is refused later, with all other mistakes.
        files = {Path(absolute(name, layer.folder)): i for i, name in enumerate(listed) if isinstance(name, str)}
    problems = [
        Problem(f"no such file: {file}", f"run.plugins[{index}]", merged.place([("run", "plugins", index)], "value"))
        for file, index in files.items()
        if not os.path.isfile(file)
    ]
    named = [Path(absolute(value, Path.cwd())) for value in plugins if value.endswith(".py")]
    strange = (
        [] if closed is None else [file for file, index in files.items() if _brought_along(listed[index], file, closed)]
    )
    strange = [file for file in strange if os.path.realpath(file) not in map(os.path.realpath, named)]
    problems += [
        Problem(
            f"{file} came with the run's directory, and is not loaded unasked",
            f"run.plugins[{files[file]}]",
            merged.place([("run", "plugins", files[file])], "value"),
            f"-p {file} loads it, if you trust it",
        )
        for file in strange
    ]
    present = [file for file in files if os.path.isfile(file) and file not in strange]
    try:
        registry = Registry.discover(
            select=[value for value in plugins if not value.endswith(".py")],
            files=[*present, *named],
            environ=environ,
        )
    except UsageError as error:
        for file in present:
            if str(file.resolve()) in str(error):
                place = merged.place([("run", "plugins", files[file])], "value")
                return None, [*problems, Problem(str(error), f"run.plugins[{files[file]}]", place)]
        raise
    places = {str(file.resolve()): files[file] for file in present}
    return registry, [*problems, *_broken_files(registry, places, merged)]


def _broken_files(registry: Registry, listed: Mapping[str, int], merged: Merged) -> Iterator[Problem]:
    """The local plugins that can't be loaded: somebody named them, so they were meant to be used.

    Args:
        listed: places in ``[run] plugins`` by path.
    """
    for plugin in registry.plugins:
        if plugin.local and plugin.state == "broken":
            index = listed.get(plugin.source)
            key = "" if index is None else f"run.plugins[{index}]"
            place = Place("-p") if index is None else merged.place([("run", "plugins", index)], "value")
            yield Problem(plugin.complaint, key, place, unavailable=BrokenPlugin(plugin.source, plugin))


def _brought_along(written: str, file: Path, closed: Path) -> bool:
    """Whether a plugin came with a run's directory; a run itself writes absolute paths of what is elsewhere."""
    return not os.path.isabs(written) or Path(os.path.realpath(file)).is_relative_to(os.path.realpath(closed))


def _checked(
    merged: Merged,
    registry: Registry,
    problems: list[Problem],
    *,
    check_source: bool = True,
    more_checks: Callable[[Config], Iterable[tuple[KeyPath, StackwiseError]]] | None = None,
) -> Config:
    config, contradicting = None, follow_source(merged) if check_source else Contradicting()
    try:
        config = convert(merged.data, registry)
    except BaseValidationError as error:
        for path, fault in faults(error):
            layer = merged.origin(path)
            if fault.known is not None:
                help = meant(path, fault.known, layer)
            else:
                help = fault.help or instead(path, merged.value(path))
            place = merged.place(fault.culprits(path), fault.part)
            problems = [*problems, Problem(fault.message, dotted(path), place, help, fault.unavailable)]
    if problems or config is None:
        raise error_for(problems)
    config = with_absolute_paths(config, merged)
    problems = [
        Problem(
            f"expected UTF-8, found {text!r:.200}",
            dotted(path),
            merged.place([path], "value"),
            ADVICE,
        )
        for path, text in names_beyond_utf8(plain(config))
    ]
    if problems:
        raise error_for(problems)
    if check_source:
        problems = [
            Problem(message, dotted(keys[0]), merged.place(keys, "value"), help)
            for keys, message, help in source_checks(config, contradicting)
        ]
        problems += [
            Problem(missing, key, merged.place([tuple(key.split("."))], "value"), unavailable=UnavailableError(missing))
            for key, missing in missing_packages(config)
        ]
        problems += [
            Problem(
                str(error),
                dotted(key),
                merged.place([key], "value"),
                unavailable=error if isinstance(error, UnavailableError) else None,
            )
            for key, error in (more_checks(config) if more_checks else ())
        ]
        if problems:
            raise error_for(problems)
    return config
