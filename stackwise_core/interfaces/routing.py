"""Routes of a finished rack: the paths that it uses, by the mask fraction of what it reads."""

from collections.abc import Iterable

from attrs import field, frozen


def as_stack_indices(stacks: Iterable[int]) -> tuple[int, ...]:
    """Return a path as a tuple of stack indices."""
    return tuple(stacks)


@frozen(kw_only=True)
class Route:
    """A path that serves a stretch of the mask schedule's progress."""

    path: tuple[int, ...] = field(converter=as_stack_indices)
    """Stacks in the order in which the hidden states pass them."""
    progress: tuple[float, float] = (0.0, 1.0)
    """The stretch that it serves; the routes of a rack cover [0, 1] between them, and share nothing but their ends."""
