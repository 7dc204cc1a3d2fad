"""The hook ``trainer_mode``: the phases in which a rack is trained. A mode only plans; one engine executes."""

from abc import abstractmethod
from typing import Literal

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import Route


class TrainerMode(Component):
    """Planner of a curriculum, without torch and without touching a weight."""

    grows: Literal["up", "down"] = "up"
    """Place where stacks join that ``rack.init_from`` doesn't have: above its own, or below them."""

    def partition(self, rack: RackSpec) -> RackSpec:
        """Regroup the rack's blocks into stacks, or add stacks to it; by default they stay as configured.

        ``rack.given`` is still empty here.
        """
        return rack

    def routes(self, rack: RackSpec) -> list[Route]:
        """Return how the finished rack uses its stacks; by default all in order, whatever the mask fraction.

        Evaluation takes the bound of each route over the mask fractions that it serves, and adds them up; a fraction
        between two is the lower one's, and what the schedule leaves out goes to the nearest.
        """
        return [Route(path=range(rack.stacks))]

    @abstractmethod
    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        """Plan the phases in order, for a rack as ``partition`` gave it.

        ``stackwise_core.interfaces.planning`` has helpers for the usual ones.

        Raises:
            UsageError: the options ask for something that this mode can't plan; the message names the key.
        """
