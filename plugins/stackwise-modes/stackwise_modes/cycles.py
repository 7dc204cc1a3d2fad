"""Phases in cycles: one stack at a time trains, with the whole rack in the path."""

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec


def one_at_a_time(
    rack: RackSpec,
    budget: Budget,
    stacks: float,
    cycles: int,
    begins: float = 0.0,
    lr: float = 1.0,
    name: str = "cycle",
) -> list[Phase]:
    """Plan phases in which one stack after the other trains under the loss of the whole rack, upwards, in cycles.

    That is block-coordinate descent (BAdam, arXiv 2404.02827). Embedding and head train with stack 0.
    """
    share = stacks / (cycles * rack.stacks)
    refuse_less_than_a_step(budget, share, cycles)
    return [
        Phase(
            name=f"{name} {cycle}, stack {stack}",
            path=range(rack.stacks),
            trains={stack},
            embedding=stack == 0,
            head=stack == 0 or budget.head == "trains",
            lr=lr,
            **budget.mask_fields,
            **budget.share(share, begins + share * (cycle * rack.stacks + stack)),
        )
        for cycle in range(cycles)
        for stack in range(rack.stacks)
    ]


def refuse_less_than_a_step(budget: Budget, share: float, cycles: int) -> None:
    """Refuse cycles that are too many for the budget.

    Raises:
        UsageError: a phase would have a share of a step.
    """
    if budget.steps_per_stack is not None and budget.steps_per_stack * share < 1:
        raise UsageError(
            f"trainer_mode.cycles = {cycles} leaves less than a step to a phase. Lower it, or raise "
            f"training.steps_per_stack = {budget.steps_per_stack}."
        )
