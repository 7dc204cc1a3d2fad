"""How a finished rack uses its stacks, by the mask fraction of what it reads."""

from collections.abc import Iterable

from attrs import field, frozen


def in_order(stacks: Iterable[int]) -> tuple[int, ...]:
    """A path as it is kept."""
    return tuple(stacks)


@frozen(kw_only=True)
class Route:
    """A path that serves a stretch of the mask schedule's progress."""

    path: tuple[int, ...] = field(converter=in_order)
    """Stacks in the order in which the hidden states pass them."""
    progress: tuple[float, float] = (0.0, 1.0)
    """What it serves; the routes of a rack cover [0, 1] between them, and share nothing but their ends."""
