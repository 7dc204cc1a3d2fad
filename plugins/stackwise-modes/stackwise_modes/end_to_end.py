"""The whole rack in the path from the first step: the baseline that the other modes are measured against."""

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode, only_over_time
from stackwise_modes.joint import all_at_once, one_at_a_time


class EndToEnd(TrainerMode):
    """Everything trains at once, or one stack at a time, for as long as all stacks together would have had."""

    def plan(self, rack: RackSpec, training: TrainingConfig) -> list[Phase]:
        only_over_time(training, 'trainer mode "end_to_end"')
        if self.options.scope == "stackwise":
            return one_at_a_time(rack, training, rack.stacks, self.options.cycles)
        return [all_at_once(rack, training, rack.stacks)]
