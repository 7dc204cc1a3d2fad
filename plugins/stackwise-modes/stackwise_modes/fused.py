"""New stacks over a trunk that runs live on fresh masks, or that goes on training with them."""

from typing import Any

from attrs import evolve

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode, only_over_time
from stackwise_modes.budget import budget, masks, shares_of, to_build
from stackwise_modes.growth import joins


class Fused(TrainerMode):
    """A phase a stack. The stacks below it are frozen and see each sample under a new mask each epoch, or train too."""

    def plan(self, rack: RackSpec, training: TrainingConfig) -> list[Phase]:
        stacks = to_build(rack, "fused")
        budgets = [budget(training, *share) for share in shares_of(self.options.shares, len(stacks))]
        if self.options.fusion == "frozen":
            return [self._over_frozen(stack, rack, training, each) for stack, each in zip(stacks, budgets, strict=True)]
        only_over_time(training, 'fusion = "trainable"')
        return [
            Phase(
                name=f"stacks 0-{stack}" if stack else "stack 0",
                path=range(stack + 1),
                trains=range(stack + 1),
                embedding=True,
                head=True,
                restores=self.options.restore,
                start=self.options.start if stack else "random",
                **masks(training),
                **each,
            )
            for stack, each in zip(stacks, budgets, strict=True)
        ]

    def _over_frozen(self, stack: int, rack: RackSpec, training: TrainingConfig, share: dict[str, Any]) -> Phase:
        phase = joins(stack, range(stack), rack, training, self.options.start, share)
        return evolve(phase, masks="resampled", boundaries="window")
