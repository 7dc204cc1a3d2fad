"""Checks of what a caller asks of a loaded rack, before anything is computed."""

from __future__ import annotations

import operator

from stackwise_core.errors import UsageError

MOST_SEED = 2**63 - 1


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number in a range.

    Raises:
        UsageError: it is something else; the message names the argument.
    """
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{name}: expected a whole number of {limits}, found {value!r:.80}.") from None
    if number < least or (most is not None and number > most):
        raise UsageError(f"{name} {number}: expected {limits}.")
    return number
