"""Typed options: attrs fields with a help text and a check, for the core's tables and for every plugin's.

.. code-block:: python

    @frozen
    class Options:
        min_fraction: float = option(0.15, "Fraction at progress 0.", check=between(0, 1))
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from attrs import NOTHING, Factory, field, frozen

Check = Callable[[Any, Any, Any], None]


def option(
    default: Any = NOTHING,
    help: str = "",
    *,
    check: Check | None = None,
    hook: str | None = None,
    alone: tuple[str, str] | None = None,
    path: tuple[str, ...] | None = None,
) -> Any:
    """Return an attrs field that the configuration fills.

    Args:
        default: the value when the TOML leaves the key out. Without a default the key is required. A callable is
            called for the value; a ``dict`` that it returns is read like a table of the TOML.
        help: one or two sentences for ``stackwise plugins show`` and the configuration reference.
        check: an attrs validator. It raises ``ValueError`` with the expected value, as in ``"expected at least 1"``.
            It may read the other fields of the instance, which are converted already.
        hook: for the core's own tables: the hook whose implementation this field's ``use =`` chooses.
        alone: with ``hook``, the meaning of a text in place of the table: an implementation, and its option that gets
            the text. None: the text is the implementation's name.
        path: set for a text that is a path. A relative one starts at the folder of the file that sets it, or at the
            working directory if an environment variable or ``--set`` sets it. The texts listed here are names, not
            paths.
    """
    if callable(default):
        default = Factory(default)
    return field(default=default, validator=check, metadata={"help": help, "hook": hook, "alone": alone, "path": path})


@frozen
class NoOptions:
    """The options of an implementation that has none."""


def at_least(minimum: float) -> Check:
    """Check that the value is ``minimum`` or more; None passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not value >= minimum:
            raise ValueError(f"expected at least {minimum}")

    return check


def counted(least: int, most: int) -> Check:
    """Check that the value is a possible number of things; None passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        at_least(least)(instance, attribute, value)
        if value is not None and value > most:
            raise ValueError(f"expected at most {most}")

    return check


def above(bound: float) -> Check:
    """Check that the value is more than ``bound``; None passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not value > bound:
            raise ValueError(f"expected more than {bound}")

    return check


def between(low: float, high: float) -> Check:
    """Check that the value lies in [low, high]; None passes."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected a number from {low} to {high}")

    return check


def not_empty(instance: Any, attribute: Any, value: Any) -> None:
    """Check that the text has something in it; None passes."""
    if value is not None and not value.strip():
        raise ValueError("expected a text that is not empty")


def in_thousands(number: float, units: Sequence[str]) -> str:
    """Return a number in three digits and the unit that leaves one to three of them before the point.

    Args:
        units: each a thousand times the one before. A number that is beyond them is a power of ten; one that isn't
            finite is ``inf`` or ``nan``.
    """
    if not math.isfinite(number):
        return f"{number}"
    for power, unit in enumerate(units):
        digits = f"{number / 1000**power:.3g}"
        if abs(float(digits)) < 1000:  # after rounding: 999,999 is 1M
            return digits + unit
    mantissa, _, exponent = f"{number:.3g}".partition("e")
    return f"{mantissa} x 10^{int(exponent)}{units[0]}"


LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that file systems take for a name and for a path."""


def path_text(instance: Any, attribute: Any, value: Any) -> None:
    """Check that a file system takes the text for a path; None passes."""
    not_empty(instance, attribute, value)
    if value is None:
        return
    if "\0" in value:
        raise ValueError("expected a path without the character 0")
    if len(os.fsencode(value)) > LONGEST_PATH:
        raise ValueError(f"expected a path of at most {LONGEST_PATH} bytes")
    if max(len(os.fsencode(name)) for name in value.split("/")) > LONGEST_NAME:
        raise ValueError(f"expected names of at most {LONGEST_NAME} bytes between the slashes")


class ByteSize(int):
    """A number of bytes, written as ``"20 GB"``, ``"512 MiB"`` or a plain integer."""

    UNITS = {"": 1, "b": 1} | {
        f"{prefix}{infix}b": base**power
        for infix, base in (("", 1000), ("i", 1024))
        for power, prefix in enumerate("kmgtpe", start=1)
    }

    @classmethod
    def parse(cls, value: int | str) -> "ByteSize":
        """Read a size; ``ValueError`` says what was expected."""
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
            if match and match[2].lower() in cls.UNITS:
                return cls(float(match[1]) * cls.UNITS[match[2].lower()])
        elif not isinstance(value, bool) and value >= 0:
            return cls(value)
        raise ValueError('expected a size such as "20 GB", "512 MiB" or a number of bytes')

    def __str__(self) -> str:
        """Return the size in the largest decimal unit that leaves at least 1."""
        return in_thousands(int(self), (" B", " kB", " MB", " GB", " TB", " PB", " EB"))
