"""Loading: from a TOML file to a checked configuration, and the registry that its plugins come from."""

import copy
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from cattrs.errors import BaseValidationError

from stackwise_core.config.choices import PLACED_HOOKS, RACK_HOOKS, lengthen
from stackwise_core.config.convert import convert, convert_choice, faults
from stackwise_core.config.defaults import default_uses
from stackwise_core.config.device_checks import wrong_devices
from stackwise_core.config.dump import plain
from stackwise_core.config.errors import Place, Problem, ProblemsError, error_for
from stackwise_core.config.hints import instead, meant
from stackwise_core.config.layers import KeyPath, Layer, Merged, PlainLayer
from stackwise_core.config.local_plugins import LocalPlugins, replaced
from stackwise_core.config.model import TEXT, Choice, Config
from stackwise_core.config.paths import absolute, with_absolute_options, with_absolute_paths
from stackwise_core.config.source_checks import source_checks
from stackwise_core.config.source_keys import Contradicting, follow_source
from stackwise_core.config.sources import Overrides, read_environment, read_files, read_overrides, read_run_file
from stackwise_core.config.utf8_names import ADVICE, names_beyond_utf8, refuse_names_beyond_utf8
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.registry import Registry
from stackwise_core.registry.blocking import AUTOLOAD, DISABLE
from stackwise_core.run_files.kept import Kept
from stackwise_core.run_files.names import CONFIG
from stackwise_core.words import dotted

_log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    environ: Mapping[str, str] | None = None,
    plugins: Sequence[str] = (),
    check_source: bool = True,
    in_run: bool = False,
    hooks: Collection[str] | None = None,
    trusted: Sequence[Path] = (),
    more_checks: Callable[[Config, Registry], Iterable[tuple[KeyPath, StackwiseError]]] | None = None,
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
        hooks: those whose implementations are needed; None: all. Of the others the options stay as in the file,
            and their plugins may be missing.
        trusted: plugin files that the user's own configuration names, absolute: as those of ``plugins``.
        more_checks: gives the keys that something else is wrong with, which only a layer above this one can tell.

    Raises:
        ConfigError: with every mistake that was found.
        ConfigUnavailable: there is no mistake, but plugins or packages that the file names aren't there.
    """
    environ = os.environ if environ is None else environ
    here = Path.cwd()
    settings, problems = read_overrides(overrides)
    run = Path(path).absolute().parent if in_run else None
    kept = Kept() if run is None else Kept.of(run)
    layers: list[Layer] = [
        PlainLayer(default_uses()),
        *(read_files(path) if run is None else [read_run_file(path)]),
        read_environment(environ),
        settings,
    ]
    merged = _merged(layers)
    named = [Path(absolute(value, here)) for value in plugins if value.endswith(".py")]
    for warning in replaced(named, kept):
        _warn(warning)
    standing_in = [*named, *(file for file in trusted if _is_other(file, named))]
    local = LocalPlugins.of(merged, standing_in, run, kept, hooks)
    select = [value for value in plugins if not value.endswith(".py")]
    registry, plugin_problems = _registry(merged, environ, select, local, needs_all=hooks is None)
    if registry is None:
        raise error_for([*problems, *plugin_problems])
    config = _checked(
        merged,
        registry,
        [*problems, *plugin_problems],
        hooks=hooks,
        check_source=check_source,
        more_checks=more_checks,
    )
    if named:  # so that the configuration of the run directory finds them
        own = [name for name in config.run.plugins if run is None or _is_other(Path(name), named)]
        listed = tuple(dict.fromkeys([*own, *map(str, named)]))
        config = attrs.evolve(config, run=attrs.evolve(config.run, plugins=listed))
        refuse_names_beyond_utf8(plain(config))
    return config, registry


@functools.cache  # a configuration may be read more than once
def _warn(warning: str) -> None:
    _log.warning("%s", warning)


def _is_other(file: Path, named: Sequence[Path]) -> bool:
    """Return whether a plugin file has another name than all of these."""
    return file.stem not in [each.stem for each in named]


def load_run(
    directory: Path,
    *,
    overrides: Overrides = (),
    plugins: Sequence[str] = (),
    hooks: Collection[str] | None = None,
    trusted: Sequence[Path] = (),
) -> tuple[Config, Registry]:
    """Read the configuration that a run wrote into its directory, whatever the environment says of other runs.

    Args:
        overrides: as ``load``.
        plugins: as ``load``; a file stands in for the one of its name that the run had.
        hooks: as ``load``.
        trusted: as ``load``.

    Raises:
        ConfigError: as ``load``.
        ConfigUnavailable: as ``load``.
    """
    environ = {name: value for name, value in os.environ.items() if name in (AUTOLOAD, DISABLE)}
    return load(
        directory / CONFIG,
        overrides=overrides,
        environ=environ,
        plugins=plugins,
        check_source=False,
        in_run=True,
        hooks=hooks,
        trusted=trusted,
    )


def load_run_to_copy(directory: Path, *, plugins: Sequence[str] = ()) -> tuple[Config, Registry]:
    """Read the configuration of a run for a copy of it elsewhere, which names the texts as seen from there.

    Where the plugin of a text can't be had, that text's options stay as the run has them: the rack doesn't need it.

    Raises:
        ConfigError: as ``load``.
        ConfigUnavailable: as ``load``, of the plugins that the rack needs.
    """
    try:
        return load_run(directory, plugins=plugins, hooks=(*RACK_HOOKS, *PLACED_HOOKS))
    except ProblemsError:
        return load_run(directory, plugins=plugins, hooks=RACK_HOOKS)


def load_run_at_precision(
    directory: Path,
    precision: str,
    *,
    asked_by: str,
    plugins: Sequence[str] = (),
    hooks: Collection[str] | None = None,
) -> tuple[Config, Registry]:
    """Load the configuration of a run, with a precision by name, or as TOML has one, for its trunk.

    Args:
        asked_by: what the precision was given with, for messages.
        hooks: as ``load``.

    Raises:
        ConfigError: there is no such precision, or its options are wrong.
        ConfigUnavailable: as ``load``.
    """
    load_run(directory, plugins=plugins, hooks=hooks)
    try:
        return load_run(directory, overrides=[f"precision.trunk={precision}"], plugins=plugins, hooks=hooks)
    except ProblemsError as error:  # in what was asked for, since the run's own configuration was right
        place, here = Place(f"{asked_by} {precision}"), "precision.trunk."
        raise error_for(
            [
                attrs.evolve(each, place=place, key=f"{each.key}.".removeprefix(here).removeprefix("use.").rstrip("."))
                for each in error.problems
            ]
        ) from None


def text_alone(text: str, registry: Registry, *, asked_by: str) -> Choice:
    """Return the corpus that a text such as ``"books/*.txt"`` alone is short for, from the working directory.

    Args:
        asked_by: what the text was given with, for messages.

    Raises:
        ConfigError: it can't be a path.
        ConfigUnavailable: the plugin isn't there.
    """
    use, option = TEXT
    try:
        choice = convert_choice({"use": use, option: text}, "corpus", registry)
    except BaseValidationError as error:
        raise error_for(
            [Problem(fault.message, "", Place(asked_by), fault.help, fault.unavailable) for _, fault in faults(error)]
        ) from None
    return with_absolute_options(choice, Path.cwd())


def structure(data: Mapping[str, Any], registry: Registry) -> Config:
    """Return a configuration from a plain dict, with the checks of ``load``.

    Relative paths are the working directory's.

    Raises:
        ConfigError: as ``load``, without places.
        ConfigUnavailable: as ``load``.
    """
    return _checked(_merged([PlainLayer(default_uses()), PlainLayer(copy.deepcopy(dict(data)))]), registry, [])


def _shortened(path: KeyPath, merged: Merged) -> str:
    """Return a dotted key, without the part that a text alone is short for."""
    table = merged.value(path[:-1])
    is_short = isinstance(table, dict) and set(table) == {"use", TEXT[1]} and table["use"] == TEXT[0]
    return dotted(path[:-1] if is_short else path)


def _merged(layers: Sequence[Layer]) -> Merged:
    merged = Merged()
    for layer in layers:
        lengthen(layer.data)
        merged.overlay(layer)
    return merged


def _registry(
    merged: Merged, environ: Mapping[str, str], select: Sequence[str], local: LocalPlugins, *, needs_all: bool
) -> tuple[Registry | None, list[Problem]]:
    """Load the plugins, which are needed before the rest is read.

    Args:
        select: of ``-p``, what isn't a file.
        needs_all: whether a listed file of which nothing is known, and that isn't loaded, is a mistake.
    """
    # What is known to declare something is refused where that is asked for.
    unknown = [left_out for left_out in local.left_out if needs_all and not left_out.declares]
    problems = [left_out.problem(merged) for left_out in unknown]
    try:
        registry = Registry.discover(select=select, files=[*local.listed, *local.named], environ=environ)
    except UsageError as error:
        for file, index in local.listed.items():
            if str(file.resolve()) in str(error):
                place = merged.place([("run", "plugins", index)], "value")
                return None, [*problems, Problem(str(error), f"run.plugins[{index}]", place)]
        raise
    registry.plugins.extend(left_out.plugin() for left_out in local.left_out if left_out not in unknown)
    return registry, [*problems, *local.broken(registry, merged, needs_all=needs_all)]


def _checked(
    merged: Merged,
    registry: Registry,
    problems: list[Problem],
    *,
    hooks: Collection[str] | None = None,
    check_source: bool = True,
    more_checks: Callable[[Config, Registry], Iterable[tuple[KeyPath, StackwiseError]]] | None = None,
) -> Config:
    config, contradicting = None, follow_source(merged, registry) if check_source else Contradicting()
    try:
        config = convert(merged.data, registry, hooks)
    except BaseValidationError as error:
        for path, fault in faults(error):
            layer = merged.origin(path)
            if fault.known is not None:
                help = meant(path, fault.known, layer)
            else:
                help = fault.help or instead(path, merged.value(path))
            place = merged.place(fault.culprits(path), fault.part)
            problems = [*problems, Problem(fault.message, _shortened(path, merged), place, help, fault.unavailable)]
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
            Problem(each.message, dotted(each.keys[0]), merged.place(each.keys, "value"), each.help, each.unavailable)
            for each in source_checks(config, contradicting, registry)
        ]
        problems += [
            Problem(str(error), dotted(key), merged.place([key], "value"), unavailable=error)
            for key, error in wrong_devices(config, registry)
        ]
        problems += [
            Problem(
                str(error),
                dotted(key),
                merged.place([key], "value"),
                unavailable=error if isinstance(error, UnavailableError) else None,
            )
            for key, error in (more_checks(config, registry) if more_checks else ())
        ]
        if problems:
            raise error_for(problems)
    return config
