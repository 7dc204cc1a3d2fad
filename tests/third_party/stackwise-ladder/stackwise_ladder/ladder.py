"""Climbs the rack twice, a stack at a time, each at its own place on the mask schedule."""

from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joining_phase, shares_of, stacks_to_build
from stackwise_core.interfaces.trainer_mode import TrainerMode


class Ladder(TrainerMode):
    def plan(self, rack, budget):
        stacks, again = stacks_to_build(rack, "ladder"), self.options.again
        shares = shares_of(self.options.shares, len(stacks))
        first, second, there = [], [], sorted(rack.given)
        for stack, (share, after) in zip(stacks, shares, strict=True):
            once = budget.share(share * (1 - again), after * (1 - again))
            first.append(joining_phase([stack], there, rack, budget, "zero_output", once))
            second.append(
                Phase(
                    name=f"stack {stack} again",
                    path=range(rack.stacks),
                    trains={stack},
                    progress=budget.stretch(stack, rack.stacks, built=len(there)),
                    **budget.mask_fields,
                    **budget.share(share * again, len(stacks) * (1 - again) + after * again),
                )
            )
            there.append(stack)
        return first + second
