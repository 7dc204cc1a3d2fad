"""Options of the mode."""

from attrs import frozen

from stackwise_core.options import between, option


@frozen
class LadderOptions:
    again: float = option(0.25, "Share of a stack's budget in which it trains again.", check=between(0.05, 0.95))
    shares: tuple[float, ...] = option((), "Relative budgets of the stacks; empty for equal ones.")
