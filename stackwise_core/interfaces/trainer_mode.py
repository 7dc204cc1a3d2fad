"""The hook ``trainer_mode``: which phases a rack is trained in. A mode only plans; one engine executes."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    from stackwise_core.config.model import TrainingConfig


class TrainerMode(Component):
    """Plans a curriculum, without torch and without touching a weight."""

    routing: Literal["sequential"] = "sequential"
    """How the finished rack uses its stacks: all in order."""

    def partition(self, rack: RackSpec) -> RackSpec:
        """Regroup the rack's blocks into stacks; by default they stay as configured."""
        return rack

    @abstractmethod
    def plan(self, rack: RackSpec, training: "TrainingConfig") -> list[Phase]:
        """The phases in order, for a rack as ``partition`` gave it.

        Raises:
            UsageError: the options ask for something that this mode can't plan; the message names the key.
        """
