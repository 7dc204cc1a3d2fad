"""Routes of a finished rack: its paths, by the mask fraction of the input."""

from collections.abc import Iterable

from attrs import field, frozen


def as_stack_indices(stacks: Iterable[int]) -> tuple[int, ...]:
    """Return a path as a tuple of stack indices."""
    return tuple(stacks)


@frozen(kw_only=True)
class Route:
    """A path that serves a stretch of the mask schedule's progress."""

    path: tuple[int, ...] = field(converter=as_stack_indices)
    """Stacks in the order in which hidden states pass through them."""
    progress: tuple[float, float] = (0.0, 1.0)
    """Stretch that it serves. A rack's routes together cover [0, 1], and share only their ends."""


@frozen
class BandRoute:
    """A path through the rack, and the mask fractions that it serves."""

    path: tuple[int, ...]
    band: tuple[float, float]

    def serves(self, fraction: float) -> bool:
        """Return whether the route serves a fraction. A common end belongs to the lower route, 0 to the lowest."""
        return self.band[0] < fraction <= self.band[1] or fraction == self.band[0] == 0
