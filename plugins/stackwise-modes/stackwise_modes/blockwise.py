"""Stack after stack, each on the boundary of the frozen ones below it."""

from attrs import evolve

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.budget import budget, shares_of, to_build
from stackwise_modes.growth import joins


class Blockwise(TrainerMode):
    """A phase a stack: the first trains with embedding and head, each later one alone on top of what is frozen."""

    def plan(self, rack: RackSpec, training: TrainingConfig) -> list[Phase]:
        stacks = to_build(rack, "blockwise")
        return [
            joins(stack, range(stack), rack, training, self.options.start, budget(training, share, after, anew=True))
            for stack, (share, after) in zip(stacks, shares_of(self.options.shares, len(stacks)), strict=True)
        ]


class Layerwise(Blockwise):
    """Blockwise over a rack that is cut into stacks of one block each."""

    def partition(self, rack: RackSpec) -> RackSpec:
        return evolve(rack, blocks=(1,) * sum(rack.blocks))
