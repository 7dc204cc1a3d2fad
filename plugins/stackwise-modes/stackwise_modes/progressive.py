"""A rack that grows: upwards or downwards, from stacks that train together, with a joint phase at its end."""

from typing import Literal

from attrs import evolve

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joining_phase, joint_phase, shares_of, stacks_to_build
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.cycles import one_at_a_time


class Progressive(TrainerMode):
    """Mode in which one stack joins after the other; the finished ones are frozen, or train their adapters.

    Appended stacks stand on the boundary of the trunk. Prepended ones get their gradient through the frozen stacks
    above them, so that there is no boundary to keep.
    """

    @property
    def grows(self) -> Literal["up", "down"]:  # type: ignore[override]
        return "down" if self.options.building == "prepend" else "up"

    def partition(self, rack: RackSpec) -> RackSpec:
        target = self.options.target_stacks or rack.stacks
        if target < rack.stacks:
            raise UsageError(f"trainer_mode.target_stacks = {target} is less than rack.stacks = {rack.stacks}.")
        new = (rack.blocks[0],) * (target - rack.stacks)
        return evolve(rack, blocks=new + rack.blocks if self.grows == "down" else rack.blocks + new)

    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        order = stacks_to_build(rack, "progressive")[:: -1 if self.grows == "down" else 1]
        there = sorted(rack.given)
        build, finale = 1 - self.options.finale, self.options.finale * len(order)
        phases: list[Phase] = []
        for stack, (share, after) in zip(order, shares_of(self.options.shares, len(order)), strict=True):
            share_of_all = budget.share(build * share, build * after, anew=True)
            phase = joining_phase(stack, there, rack, budget, self.options.start, share_of_all)
            phases.append(evolve(phase, adapts=there) if self.options.trunk == "adapters" else phase)
            there = sorted([*there, stack])
        if finale:
            budget.only_over_time("a finale")
            phases += self._finale(rack, budget, finale, begins=build * len(order))
        return phases

    def _finale(self, rack: RackSpec, budget: Budget, share: float, begins: float) -> list[Phase]:
        """Plan the last stretch, with the whole rack in the path."""
        if self.options.finale_scope == "stackwise":
            phases = one_at_a_time(rack, budget, share, self.options.cycles, begins, self.options.finale_lr, "finale")
        else:
            phases = [joint_phase(rack, budget, budget.share(share, begins), self.options.finale_lr, "finale")]
        if self.options.trunk == "frozen":
            return phases
        return [evolve(phase, trains=(), adapts=phase.trains, embedding=False, head=False) for phase in phases]
