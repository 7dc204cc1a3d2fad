"""Phases with the whole rack in the path: all of it trains, or one stack at a time."""

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_modes.budget import budget, masks, refuse_less_than_a_step


def all_at_once(
    rack: RackSpec,
    training: TrainingConfig,
    stacks: float,
    begins: float = 0.0,
    lr: float = 1.0,
    name: str = "whole rack",
) -> Phase:
    """Everything trains, for as long as so many stacks would have, after as many before it."""
    return Phase(
        name=name,
        path=range(rack.stacks),
        trains=range(rack.stacks),
        embedding=True,
        head=True,
        lr=lr,
        **masks(training),
        **budget(training, stacks, begins),
    )


def one_at_a_time(
    rack: RackSpec,
    training: TrainingConfig,
    stacks: float,
    cycles: int,
    begins: float = 0.0,
    lr: float = 1.0,
    name: str = "cycle",
) -> list[Phase]:
    """One stack after the other trains under the loss of the whole rack, upwards, in cycles.

    That is block-coordinate descent (BAdam, arXiv 2404.02827). Embedding and head train with stack 0.
    """
    share = stacks / (cycles * rack.stacks)
    refuse_less_than_a_step(training, share, cycles)
    return [
        Phase(
            name=f"{name} {cycle}, stack {stack}",
            path=range(rack.stacks),
            trains={stack},
            embedding=stack == 0,
            head=stack == 0 or training.head == "trains",
            lr=lr,
            **masks(training),
            **budget(training, share, begins + share * (cycle * rack.stacks + stack)),
        )
        for cycle in range(cycles)
        for stack in range(rack.stacks)
    ]
