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
    """Place of new stacks beside those of ``rack.init_from``: above or below them."""

    def partition(self, rack: RackSpec) -> RackSpec:
        """Regroup the rack's blocks into stacks, or add stacks to it; by default they stay as configured.

        ``rack.given`` is still empty here.
        """
        return rack

    def routes(self, rack: RackSpec) -> list[Route]:
        """Return how the finished rack uses its stacks; by default all in order, whatever the mask fraction.

        Evaluation adds up the bounds of the routes, each over the mask fractions that it serves. A fraction at a common
        end belongs to the lower route; fractions that the schedule never reaches go to the nearest route.
        """
        return [Route(path=range(rack.stacks))]

    @abstractmethod
    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        """Plan the phases in order, for a rack that ``partition`` returned.

        ``stackwise_core.interfaces.planning`` has helpers for the usual ones.

        Raises:
            UsageError: the options ask for something that this mode can't plan; the message names the key.
        """
