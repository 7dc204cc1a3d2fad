"""The phase in which a stack joins frozen ones."""

from collections.abc import Collection
from typing import Any

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_modes.budget import masks
from stackwise_modes.options import Start
from stackwise_modes.stretch import stretch_of


def joins(
    stack: int, there: Collection[int], rack: RackSpec, training: TrainingConfig, start: Start, share: dict[str, Any]
) -> Phase:
    """A stack trains among those that are there; the very first brings embedding and head, and has no neighbour.

    Args:
        share: its part of the budget, as ``budget`` gives it.
    """
    first = not there
    return Phase(
        name=f"stack {stack}",
        path=sorted([*there, stack]),
        trains={stack},
        embedding=first,
        head=first or training.head == "trains",
        progress=stretch_of(stack, rack.stacks, training, built=len(there)),
        start="random" if first else start,
        **masks(training),
        **share,
    )
