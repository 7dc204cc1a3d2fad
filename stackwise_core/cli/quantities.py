"""Numbers as people read them."""

from stackwise_core.options import in_thousands

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 31_557_600


def count(number: float) -> str:
    """Return a count as ``1.23M``, ``456k``, ``78``, ``24E``; beyond what has a letter ``2.4 x 10^27``."""
    return in_thousands(number, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"))


def duration(seconds: float) -> str:
    """Return a time as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rough_duration(seconds: float) -> str:
    """Return an estimate in two digits: ``40 s``, ``12 min``, ``3.5 h``, ``2 days``, ``4.1k years``."""
    least = 0.0
    for unit, size, most in (("s", 1, MINUTE), ("min", MINUTE, HOUR), ("h", HOUR, DAY), ("days", DAY, YEAR)):
        rounded = max(least, float(f"{seconds / size:.2g}"))
        if rounded * size < most:
            return "1 day" if (rounded, unit) == (1, "days") else f"{rounded:g} {unit}"
        least = 1.0  # 59.7 s is a minute, and not 0.99 of one
    return f"{in_thousands(float(f'{seconds / YEAR:.2g}'), ('', 'k', 'M', 'G', 'T'))} years"
