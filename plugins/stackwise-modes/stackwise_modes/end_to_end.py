"""The whole rack at once: the baseline that the other modes are measured against."""

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode


class EndToEnd(TrainerMode):
    """One phase in which everything trains, for as long as all stacks together would have had."""

    def plan(self, rack: RackSpec, training: TrainingConfig) -> list[Phase]:
        if training.over != "time":
            raise UsageError(
                f'training.over = "{training.over}" gives each stack a phase of its own, and trainer mode "end_to_end" '
                'has only one. Use "time".'
            )
        steps = training.steps_per_stack
        return [
            Phase(
                name="whole rack",
                path=range(rack.stacks),
                trains=range(rack.stacks),
                embedding=True,
                head=True,
                masks=training.masks,
                masks_per_sample=training.masks_per_sample,
                epochs=self.options.epochs or training.epochs_per_stack * rack.stacks,
                steps=None if steps is None or self.options.epochs else steps * rack.stacks,
            )
        ]
