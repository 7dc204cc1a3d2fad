"""Configuration errors: location, what was expected, nearest valid value."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from rich.cells import cell_len

from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.printable import printable

_LONGEST_LINE = 160


@frozen
class Place:
    """The location where a value was set.

    Files have lines and columns (from 1); ``--set`` and the environment have neither.
    """

    origin: str
    """``"stackwise.toml"``, ``"--set training.batch_size=0"`` or ``"environment variable STACKWISE_..."``."""
    line: int | None = None
    column: int | None = None
    source: str = ""
    """The line's text, without its end."""
    width: int = 1
    """Number of characters of the line that are meant."""

    def __str__(self) -> str:
        return self.origin if self.line is None else f"{self.origin}:{self.line}:{self.column}"

    def excerpt(self) -> list[str]:
        """Return the source line with carets under the characters that are meant; nothing where there is no line."""
        if self.line is None or self.column is None:
            return []
        start, source = self.column - 1, printable(self.source)
        if len(source) > _LONGEST_LINE:  # a window on it
            cut = max(0, start - _LONGEST_LINE // 2)
            source, start = source[cut : cut + _LONGEST_LINE], start - cut
        margin = " " * len(str(self.line))
        indent = "".join("\t" if character == "\t" else " " * cell_len(character) for character in source[:start])
        carets = "^" * max(1, cell_len(source[start : start + self.width]))
        return [f"  {self.line} | {source}".rstrip(), f"  {margin} | {indent}{carets}"]


@frozen
class Problem:
    """One problem of a configuration."""

    message: str
    key: str = ""
    """The dotted key path, empty where the problem is a whole file's."""
    place: Place | None = None
    help: str = ""
    unavailable: UnavailableError | None = None
    """Set where the configuration is right, and a plugin or a package that it names isn't there."""

    def __str__(self) -> str:
        first, *more = self.message.splitlines() or [""]
        lines = [": ".join(str(part) for part in (self.place, self.key, first) if part)]
        lines += self.place.excerpt() if self.place else []
        lines += [f"    {line}".rstrip() for line in more]
        lines += [f"    help: {self.help}"] if self.help else []
        return printable("\n".join(lines), keep="\n\t")

    def as_json(self) -> dict[str, Any]:
        """Return the same as a JSON object; ``line`` and ``column`` are null where there are none."""
        return {
            "place": self.place.origin if self.place else None,
            "line": self.place.line if self.place else None,
            "column": self.place.column if self.place else None,
            "key": self.key,
            "message": self.message,
            "help": self.help,
            "unavailable": self.unavailable is not None,
        }


class ProblemsError(StackwiseError):
    """All problems of a configuration at once; its text is the whole report."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = _in_reading_order(problems)
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        return "\n\n".join(
            [*map(str, self.problems), f"{count} error{'s' if count > 1 else ''}. Nothing was run."],
        )

    def as_json(self) -> dict[str, Any]:
        """Return ``{"ok": false, "problems": [...]}`` for ``stackwise check --json``."""
        return {"ok": False, "problems": [problem.as_json() for problem in self.problems]}


class ConfigError(ProblemsError, UsageError):
    """Error of a configuration that asks for something that can't be."""


class ConfigUnavailable(ProblemsError, UnavailableError):
    """Error of a valid configuration whose plugins or packages aren't installed."""


def error_for(problems: Sequence[Problem]) -> ProblemsError:
    """Return the exception for some problems.

    Where each of them is an unavailable plugin's, its cause is the first plugin's own error.
    """
    if not all(problem.unavailable for problem in problems):
        return ConfigError(problems)
    error = ConfigUnavailable(problems)
    error.__cause__ = problems[0].unavailable
    return error


def _in_reading_order(problems: Sequence[Problem]) -> list[Problem]:
    origins = list(dict.fromkeys(problem.place.origin if problem.place else "" for problem in problems))

    def order(problem: Problem) -> tuple[int, int, int]:
        place = problem.place
        if place is None:
            return origins.index(""), 0, 0
        return origins.index(place.origin), place.line or 0, place.column or 0

    return sorted(problems, key=order)
