"""Reader of the layers: files with what they extend, ``STACKWISE_*`` variables, ``--set``."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from stackwise_core.config.dump import plain
from stackwise_core.config.errors import Place, Problem, error_for
from stackwise_core.config.hints import OF_REGISTRY, setting_meant
from stackwise_core.config.layers import ENVIRONMENT_PREFIX, EnvironmentLayer, FileLayer, RunLayer, SettingsLayer
from stackwise_core.config.locate import TomlText
from stackwise_core.config.source_run import nearest_run
from stackwise_core.registry.nearest import nearest
from stackwise_core.run_files.kept import Kept
from stackwise_core.run_files.names import CONFIG
from stackwise_core.words import a, found

_OF_A_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""Names of the variables that Kubernetes sets in every container for a service whose name begins with ``stackwise``,
without the prefix."""
_DEEPEST = 40

_log = logging.getLogger(__name__)

Overrides = Sequence[str] | Mapping[str, Any]
"""Values of ``--set``, such as ``"training.batch_size=8"``; or values by key, ``{"training.batch_size": 8}``."""


def read_files(path: str | os.PathLike[str]) -> list[FileLayer]:
    """Read a file and those that it extends, the lowest first.

    Raises:
        ConfigError: a file can't be read, isn't TOML, or extends itself.
    """
    name = os.fspath(path)
    layers: list[FileLayer] = []
    extends: Place | None = None
    while True:
        layers.insert(0, _read_file(name, extends))
        if "extends" not in layers[0].data:
            return layers
        base = layers[0].data.pop("extends")
        extends = layers[0].place(("extends",), "value")
        if not isinstance(base, str) or not base.strip():
            message = f"expected {a(str)} that names a file, found {found(base)}"
            raise error_for([Problem(message, "extends", extends)])
        name = os.path.normpath(os.path.join(os.path.dirname(name), os.path.expanduser(base)))
        names = [layer.source.name for layer in reversed(layers)]
        if any(_same_file(name, known) for known in names):
            message = f"the files extend one another in a circle: {' -> '.join([*names, name])}"
            raise error_for([Problem(message, "extends", extends)])


def read_run_file(path: str | os.PathLike[str]) -> FileLayer:
    """Read the configuration in a run's directory, which extends no other file.

    Raises:
        ConfigError: the file can't be read, isn't TOML, or extends another.
    """
    layer = _read_file(os.fspath(path), None)
    if "extends" in layer.data:
        place = layer.place(("extends",), "value")
        raise error_for([Problem("the configuration of a run has all of its keys in one file", "extends", place)])
    return layer


def read_environment(environ: Mapping[str, str]) -> EnvironmentLayer:
    """Read the values of all ``STACKWISE_*`` variables with a double underscore; note others that look like one."""
    layer = EnvironmentLayer()
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in OF_REGISTRY:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if "__" in name:
            layer.put(
                tuple(name.lower().split("__")), toml_value(environ[variable]), f"environment variable {variable}"
            )
        elif not _OF_A_SERVICE.fullmatch(name) and (near := setting_meant(name)):
            _log.warning("note: the environment variable %s sets nothing; did you mean %s?", variable, near)
    return layer


def read_overrides(overrides: Overrides) -> tuple[SettingsLayer, list[Problem]]:
    """Return the values of all overrides, and the problems of those that aren't valid ones."""
    layer, problems = SettingsLayer(), []
    if isinstance(overrides, Mapping):
        settings = [(key, f'overrides["{key}"]', plain(value)) for key, value in overrides.items()]
    else:
        split = [(override, *override.partition("=")) for override in overrides]
        # Without an equals sign it is no key either.
        settings = [
            (key if is_one else "", f"--set {all_}", toml_value(value.strip())) for all_, key, is_one, value in split
        ]
    for key, label, value in settings:
        path = _dotted_key(key)
        if path:
            layer.put(path, value, label)
        else:
            example = "KEY=VALUE, such as training.batch_size=8"
            if isinstance(overrides, Mapping):
                example = 'a dotted key, such as "training.batch_size"'
            problems.append(Problem(f"expected {example}", place=Place(label)))
    return layer, problems


def _read_file(name: str, extends: Place | None) -> FileLayer:
    key = "extends" if extends else ""
    try:
        content = Path(name).read_bytes()
    except FileNotFoundError:
        problem = Problem(
            f"no such file: {name}" if extends else "no such file", key, extends or Place(name), _near(name)
        )
        raise error_for([problem]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{name} can't be read: {reason}" if extends else f"can't be read: {reason}"
        raise error_for([Problem(message, key, extends or Place(name))]) from None
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace").split("\n")
        line = content.split(b"\n")[len(before) - 1].decode("utf-8", "replace")
        place = Place(name, len(before), len(before[-1]) + 1, line.rstrip("\r"))
        message = f"this file isn't UTF-8, as TOML must be: found the byte 0x{content[error.start]:02x}"
        raise error_for([Problem(message, "", place, "save it as UTF-8")]) from None
    source = TomlText(name, text)
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = f"not valid TOML: {error.msg[:1].lower()}{error.msg[1:]}"
        raise error_for([Problem(message, "", source.at(min(error.pos, len(text))))]) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, thousands of brackets
        message = "nested too deeply" if isinstance(error, RecursionError) else f"not valid TOML: {error}"
        raise error_for([Problem(message, "", Place(name))]) from None
    if _deeper_than(data, _DEEPEST):
        raise error_for([Problem(f"nested more than {_DEEPEST} tables deep", "", Place(name))])
    folder = Path(name).absolute().parent
    if Path(name).name == CONFIG and (written_in := Kept.of(folder).written_in) is not None:
        return RunLayer(data, folder, source, written_in)
    return FileLayer(data, folder, source)


def _near(name: str) -> str:
    """Return a hint at what was meant: a file in that folder with a like name, or a run."""
    folder, wanted = os.path.split(name)
    try:  # without their ending, which is like itself
        stems = [entry.removesuffix(".toml") for entry in sorted(os.listdir(folder or ".")) if entry.endswith(".toml")]
    except (OSError, ValueError):
        return f"there is no folder {folder}"
    like = nearest(wanted.removesuffix(".toml"), stems)
    meant = os.path.join(folder, f"{like}.toml") if like else nearest_run(name)
    return f"did you mean {meant}?" if meant else ""


def _same_file(name: str, known: str) -> bool:
    try:
        return os.path.samefile(name, known)
    except (OSError, ValueError):
        return False


def toml_value(text: str) -> Any:
    """Read a text as a TOML value, and as a plain string where it isn't one."""
    try:
        data = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return data["value"] if len(data) == 1 and not _deeper_than(data, _DEEPEST) else text


def _dotted_key(text: str) -> tuple[str, ...]:
    """Return the parts of a dotted key, quoted ones too; none where it isn't one."""
    try:
        data: Any = tomli.loads(f"{text.strip()} = 0")
    except (ValueError, RecursionError):
        return ()
    path: list[str] = []
    while isinstance(data, dict) and len(data) == 1:
        ((key, data),) = data.items()
        path.append(key)
    return tuple(path) if data == 0 and len(path) <= _DEEPEST else ()


def _deeper_than(value: Any, levels: int) -> bool:
    """Return whether tables and arrays are nested more deeply, found without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(value, dict | list) for value in level)
