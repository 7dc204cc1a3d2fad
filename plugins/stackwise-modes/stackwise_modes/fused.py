"""New stacks over a trunk that runs live on fresh masks, or that trains along with them."""

from typing import Any

from attrs import evolve

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joining_phase, named, shares_of, stacks_to_build
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.hierarchical import hierarchical
from stackwise_modes.plateau import ending


class Fused(TrainerMode):
    """Mode of a phase a stack.

    The stacks below it are frozen and see each sample under a new mask each epoch, or train too.
    """

    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        options = self.options
        if options.fusion == "hierarchical":
            phases = hierarchical(rack, budget, options.shares, options.start, restores=options.restore)
            return ending(phases, options)
        stacks = stacks_to_build(rack, "fused")
        shares = [budget.share(*share) for share in shares_of(self.options.shares, len(stacks))]
        if options.fusion == "frozen":
            frozen = [self._over_frozen(stack, rack, budget, each) for stack, each in zip(stacks, shares, strict=True)]
            return ending(frozen, options)
        budget.only_over_time('fusion = "trainable"')
        phases = [
            Phase(
                name=named(range(stack + 1)),
                path=range(stack + 1),
                trains=range(stack + 1),
                embedding=True,
                head=True,
                restores=options.restore,
                start=options.start if stack else "random",
                **budget.mask_fields,
                **each,
            )
            for stack, each in zip(stacks, shares, strict=True)
        ]
        return ending(phases, options)

    def _over_frozen(self, stack: int, rack: RackSpec, budget: Budget, share: dict[str, Any]) -> Phase:
        phase = joining_phase([stack], range(stack), rack, budget, self.options.start, share)
        return evolve(phase, masks="resampled", boundaries="window")
