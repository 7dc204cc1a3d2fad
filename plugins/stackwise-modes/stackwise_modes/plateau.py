"""Ends of phases: by their shares of the budget, or where the loss on held-out text stops falling."""

from collections.abc import Sequence
from typing import Protocol

from attrs import evolve

from stackwise_core.interfaces.phase import Phase
from stackwise_modes.options import Joins


class Joining(Protocol):
    """Options that say when the next stacks join."""

    @property
    def joins(self) -> Joins: ...

    @property
    def least(self) -> float: ...


def ending(phases: Sequence[Phase], options: Joining) -> list[Phase]:
    """Let phases end as the options say: with ``joins = "plateau"`` each but the last passes on what it leaves."""
    if options.joins == "share":
        return list(phases)
    *earlier, last = phases
    return [*(evolve(each, ends="passing_on", least=options.least) for each in earlier), evolve(last, ends="late")]
