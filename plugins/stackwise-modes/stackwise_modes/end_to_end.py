"""The whole rack in the path from the first step: the baseline that the other modes are measured against."""

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joint_phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.cycles import one_at_a_time


class EndToEnd(TrainerMode):
    """Mode in which everything trains at once, or one stack at a time.

    It lasts as long as all stacks would have had together.
    """

    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        budget.only_over_time('trainer mode "end_to_end"')
        if self.options.scope == "stackwise":
            return one_at_a_time(rack, budget, rack.stacks, self.options.cycles)
        return [joint_phase(rack, budget, budget.share(rack.stacks))]
