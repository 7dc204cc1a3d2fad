"""The layers of a configuration, each over the one before it: defaults, files, environment, ``--set``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from stackwise_core.config.choices import lengthen
from stackwise_core.config.errors import Place
from stackwise_core.config.locate import Part, TomlText

KeyPath = tuple[str | int, ...]

ENVIRONMENT_PREFIX = "STACKWISE_"


class Layer(ABC):
    """Values from one source."""

    data: dict[str, Any]
    folder: Path
    """Folder that relative paths in it are taken from."""

    @abstractmethod
    def place(self, path: KeyPath, part: Part) -> Place | None:
        """Return where a key or its value was set in this layer."""


@frozen
class PlainLayer(Layer):
    """Values from Python: the defaults, or a dict."""

    data: dict[str, Any]
    folder: Path = field(factory=Path.cwd)

    def place(self, path: KeyPath, part: Part) -> None:
        return None


@frozen
class FileLayer(Layer):
    """One TOML file."""

    data: dict[str, Any]
    folder: Path
    source: TomlText

    def place(self, path: KeyPath, part: Part) -> Place:
        return self.source.place(path, part)


@frozen
class RunLayer(FileLayer):
    """The configuration in a run's directory."""

    written_in: Path | None = None
    """The run's directory when it wrote the file: what a relative path leads to where the run was moved alone."""


@define
class Merged:
    """All layers in one, and which of them set what."""

    data: dict[str, Any] = field(factory=dict)
    origins: dict[KeyPath, Layer] = field(factory=dict)
    """The layer of each value; of a table, the highest layer that has it."""

    def overlay(self, layer: Layer) -> None:
        """Add a layer over the existing ones."""
        self._overlay(self.data, layer.data, (), layer)
        if not isinstance(layer, SettingsLayer):
            self.origins[()] = layer

    def _overlay(self, lower: dict[str, Any], higher: dict[str, Any], path: KeyPath, layer: Layer) -> None:
        if "use" in lower and "use" in higher and lower["use"] != higher["use"]:
            lower.clear()  # options of another implementation
            self._forget(path)
        if path:
            self.origins[path] = layer
        for key, value in higher.items():
            here = (*path, key)
            if isinstance(value, dict):
                if not isinstance(lower.get(key), dict):
                    self._forget(here)
                    lower[key] = {}
                self._overlay(lower[key], value, here, layer)
            else:
                self._forget(here)
                lower[key] = value
                self.origins[here] = layer

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]

    def value(self, path: KeyPath) -> Any:
        """Return the value at a path, None where there is none."""
        found: Any = self.data
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        return found

    def origin(self, path: KeyPath) -> Layer | None:
        """Return the layer that set the value at a path, or a table around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return None

    def sets(self, path: KeyPath) -> bool:
        """Return whether some layer has just this path, the defaults aside; a place in an array is its array's."""
        layer = self.origins.get(tuple(takewhile(lambda step: isinstance(step, str), path)))
        return layer is not None and not isinstance(layer, PlainLayer)

    def place(self, paths: Sequence[KeyPath], part: Part) -> Place | None:
        """Return the location of the first of these paths that was set; if none was, the table of the first."""
        path = next((path for path in paths if self.sets(path)), None)
        if path is None:
            path, part = paths[0], "key"
            while path and not self.sets(path):
                path = path[:-1]
        layer = self.origin(path)
        return layer.place(path, part) if layer else None


@frozen
class _Setting(Layer):
    """One ``--set``, or one environment variable."""

    data: dict[str, Any]
    folder: Path
    label: str

    def place(self, path: KeyPath, part: Part) -> Place:
        return Place(self.label)


@define
class SettingsLayer(Layer):
    """Single values: of all environment variables, or of all ``--set``."""

    folder: Path = field(factory=Path.cwd)
    _merged: Merged = field(factory=Merged, init=False)

    @property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        """All values in one."""
        return self._merged.data

    def put(self, path: tuple[str, ...], value: Any, label: str) -> None:
        """Set a value; a later one wins."""
        data = value
        for key in reversed(path):
            data = {key: data}
        lengthen(data)
        self._merged.overlay(_Setting(data, self.folder, label))

    def place(self, path: KeyPath, part: Part) -> Place | None:
        layer = self._merged.origin(path)
        return layer.place(path, part) if layer else None


class EnvironmentLayer(SettingsLayer):
    """Layer of environment variables, ``STACKWISE_TRAINING__BATCH_SIZE=8``.

    A double underscore stands for the dot, and makes a variable a setting.
    """
