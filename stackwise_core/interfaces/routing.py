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


@frozen
class BandRoute:
    """A path through the rack, and the mask fractions that it serves."""

    path: tuple[int, ...]
    band: tuple[float, float]

    def serves(self, fraction: float) -> bool:
        """Return whether a fraction is this route's; one between two routes is the lower one's, and 0 the lowest's."""
        return self.band[0] < fraction <= self.band[1] or fraction == self.band[0] == 0
