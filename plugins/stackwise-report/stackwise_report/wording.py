"""Numbers and settings as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stackwise_core.options import ByteSize, in_thousands
from stackwise_core.words import shown

NOTHING = "–"


def nats(value: float | None) -> str:
    """Return ``2.0464``."""
    return NOTHING if value is None else f"{value:.4f}"


def error(value: float | None) -> str:
    """Return ``± 0.0213``."""
    return NOTHING if value is None else f"± {value:.4f}"


def perplexity(value: float | None) -> str:
    """Return ``7.740``."""
    if value is None:
        return NOTHING
    return f"{value:#.4g}".removesuffix(".") if math.isfinite(value) else ">\xa01.8e308"


def change(value: float | None) -> str:
    """Return ``−0.0127``, with a true minus."""
    return NOTHING if value is None else f"{value:+.4f}".replace("-", "−")


def size(value: int | None) -> str:
    """Return ``614 MB``."""
    return NOTHING if value is None else str(ByteSize(value)).replace(" ", "\xa0")


def duration(seconds: float | None) -> str:
    """Return ``1 h 02 min``, ``3 min 26 s`` or ``4.2 s``."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}\xa0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\xa0h {minutes:02d}\xa0min" if hours else f"{minutes}\xa0min {rest:02d}\xa0s"


def whole(value: int | None) -> str:
    """Return ``3,074``."""
    return NOTHING if value is None else f"{value:,}"


def count(value: float | None) -> str:
    """Return ``6.27 M``."""
    if value is None:
        return NOTHING
    return in_thousands(value, ("", *(f"\xa0{letter}" for letter in "kMGTPEZY")))


def share(part: float | None, of: float | None) -> str:
    """Return ``75.0 %``."""
    return f"{100 * part / of:.1f}\xa0%" if part is not None and of else NOTHING


def band(low: float, high: float) -> str:
    """Return ``15–90 %``, or ``15 %`` for one fraction."""
    ends = [f"{100 * end:.3g}" for end in (low, high)]
    return f"{ends[0] if low == high else '–'.join(ends)}\xa0%"


def numbers(values: tuple[int, ...]) -> str:
    """Return ``0–3`` or ``0, 2``."""
    ordered = sorted(set(values))
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))


def choice(value: object, left_out: str) -> str:
    """Describe a choice and its options: ``blockwise (start = "copy")``."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{key} = {shown(content)}" for key, content in value.items() if key != "use")
        return f"{value.get('use')}{f' ({options})' if options else ''}"
    return left_out if value is None else str(value)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return every key of a configuration with its value, written as in TOML."""
    found: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = shown(value, None)
    return found
