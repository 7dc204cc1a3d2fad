"""A phase: a stretch of training with a fixed path, fixed trainable parameters, entry, band, masks and budget."""

from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen

from stackwise_core.interfaces.routing import as_stack_indices


def _members(stacks: Iterable[int]) -> frozenset[int]:
    return frozenset(stacks)


def _pairs(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, second) for first, second in pairs)


@frozen(kw_only=True)
class Phase:
    """A stretch of training that the engine executes; a trainer mode plans a list of them."""

    name: str
    """Name for tables and measurements; no two phases of a plan have the same."""
    path: tuple[int, ...] = field(converter=as_stack_indices)
    """Stacks in the order in which hidden states pass through them."""
    trains: frozenset[int] = field(converter=_members)
    """Stacks of the path whose full weights train; the others are frozen."""
    adapts: frozenset[int] = field(default=frozenset(), converter=_members)
    """Stacks of the path whose adapters train and whose own weights don't."""
    adapters: tuple[tuple[int, str], ...] = ()
    """Adapters that train, as pairs of a stack and an adapter's name. Set by ``[adapter]``; a mode leaves it out."""
    merges: tuple[tuple[int, str], ...] = ()
    """Adapters that are folded into the full-precision masters before the phase. Set by ``[adapter]``, too."""
    restores: bool = True
    """Whether stacks of ``trains`` that were frozen before are loaded from their masters again, to train in full. If
    not, and their trunk precision can't train, their adapters train over it instead."""
    embedding: bool = False
    """Whether the token embedding trains."""
    head: bool = False
    """Whether the LM head trains."""
    progress: tuple[float, float] = (0.0, 1.0)
    """Stretch of the mask schedule's progress that draws are taken from. Equal ends fix the mask fraction."""
    masks: Literal["fixed", "resampled"] = "fixed"
    """Masks of a sample: ``masks_per_sample`` draws in turn, or a new one each epoch."""
    masks_per_sample: int = 4
    """The number of fixed draws of a sample."""
    weighting: Literal["nelbo", "mean"] | None = None
    """Loss weighting; None: as ``training.weighting`` says, or as the schedule allows."""
    epochs: float = 1
    """Passes over the training split. A fraction is rounded to whole steps, at least one."""
    steps: int | None = None
    """Optimizer steps. None: ``epochs`` decides."""
    begins: float = 0
    """Beginning of the phase in the stream of samples and draws, in steps if ``steps`` is set, else in epochs. Phases
    that begin at the same place share their draws."""
    start: Literal["random", "copy", "zero_output"] = "random"
    """Initial weights of new stacks: random; a copy of the neighbour in the path; or random, but with zeros for the
    projections into the residual stream, so that the stack changes nothing at first."""
    copies: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    """Stacks that new ones begin as copies of, as pairs of the new stack and the other, where it isn't the neighbour.
    Several stacks that begin at once need them: a copy is of a stack that was there before."""
    lr: float = 1.0
    """Factor of all learning rates."""
    boundaries: Literal["cache", "window"] = "cache"
    """Place of boundaries: the cache backend, or always memory, one window at a time."""
    ends: Literal["early", "passing_on", "late"] = "early"
    """Effect of ``training.patience`` at a plateau of its loss on held-out text. early: the phase ends. passing_on: it
    ends, and the next phase gets what is left of its budget. late: none."""
    least: float = 0.0
    """Share of its steps that the phase takes before any plateau ends it."""

    @property
    def frozen_prefix(self) -> tuple[int, ...]:
        """Stacks below the first one that trains or adapts: the trunk whose output is this phase's boundary."""
        if self.embedding:
            return ()
        for place, stack in enumerate(self.path):
            if stack in self.trains or stack in self.adapts:
                return self.path[:place]
        return self.path

    def copied(self, stack: int) -> int | None:
        """Return the stack that a new one begins as a copy of, if ``start`` says so.

        By default it is the one below in the path, or above at the bottom. None: there is no other.
        """
        place = self.path.index(stack)
        beside = self.path[place - 1 : place] if place else self.path[1:2]
        return dict(self.copies).get(stack, beside[0] if beside else None)

    @property
    def exit_norm(self) -> int | None:
        """Stack whose exit norm trains: the path's last, if it trains. No other exit is read."""
        return self.path[-1] if self.path[-1] in self.trains else None

    @property
    def trains_adapters(self) -> dict[int, tuple[str, ...]]:
        """Names of the adapters that train, by stack."""
        return {stack: tuple(name for of, name in self.adapters if of == stack) for stack, _ in self.adapters}

    @property
    def live_path(self) -> tuple[int, ...]:
        """Stacks that every training step runs, from the first unfrozen one up."""
        return self.path[len(self.frozen_prefix) :]

    @property
    def entry(self) -> str:
        """Entry of a training step: ``"tokens"``, or the boundary above the frozen prefix."""
        prefix = self.frozen_prefix
        return f"boundary above stack {prefix[-1]}" if prefix else "tokens"

    def draw_number(self, epoch: int) -> int:
        """Return the draw of every sample in an epoch: a new one each time, or in turn through the fixed ones."""
        return epoch if self.masks == "resampled" else epoch % self.masks_per_sample
