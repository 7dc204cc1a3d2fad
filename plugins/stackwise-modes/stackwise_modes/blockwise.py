"""Stack after stack, each on the boundary of the frozen ones below it."""

from attrs import evolve

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joining_phase, shares_of, stacks_to_build
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.plateau import ending


class Blockwise(TrainerMode):
    """Mode of a phase a stack.

    The first trains with embedding and head, each later one alone on top of what is frozen.
    """

    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        stacks = stacks_to_build(rack, "blockwise")
        phases = [
            joining_phase([stack], range(stack), rack, budget, self.options.start, budget.share(*share, anew=True))
            for stack, share in zip(stacks, shares_of(self.options.shares, len(stacks)), strict=True)
        ]
        return ending(phases, self.options)


class Layerwise(Blockwise):
    """The blockwise mode over a rack that is cut into stacks of one block each."""

    def partition(self, rack: RackSpec) -> RackSpec:
        return evolve(rack, blocks=(1,) * sum(rack.blocks))
