"""A rack that grows: upwards or downwards, from stacks that train together, with a joint phase at its end."""

from typing import Literal

from attrs import evolve

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.planning import joining_phase, joint_phase, named, shares_of, stacks_to_build
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.cycles import one_at_a_time
from stackwise_modes.growth import joining_between, joining_in_order, sizes
from stackwise_modes.plateau import ending


class Progressive(TrainerMode):
    """Mode in which stacks join, one after the other or several at once; those that are there are frozen, train their
    adapters, or train along.

    Stacks that are appended to a frozen trunk stand on its boundary. Prepended ones get their gradient through the
    frozen stacks above them, so that there is no boundary to keep.
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
        options, joining = self.options, self._joining(rack)
        new_stacks = sum(map(len, joining))
        there = sorted(rack.given)
        finale = options.finale * new_stacks
        shares = shares_of(
            options.shares, len(joining), (1 - options.finale) * new_stacks, what="phases of growth are planned"
        )
        phases: list[Phase] = []
        for new, share in zip(joining, shares, strict=True):
            of_budget = budget.share(*share, anew=options.trunk != "trains")
            phase = joining_phase(new, there, rack, budget, options.start, of_budget)
            if options.trunk == "adapters":
                phase = evolve(phase, adapts=there)
            elif options.trunk == "trains":
                budget.only_over_time('trunk = "trains"')
                phase = evolve(phase, name=named(phase.path), trains=phase.path, embedding=True, head=True)
            phases.append(phase)
            there = sorted([*there, *new])
        if finale:
            budget.only_over_time("a finale")
            phases += self._finale(rack, budget, finale, begins=new_stacks - finale)
        return ending(phases, options)

    def _joining(self, rack: RackSpec) -> list[list[int]]:
        """Return the stacks that join in each phase of growth."""
        options, given = self.options, len(rack.given)
        order = stacks_to_build(rack, "progressive")[:: -1 if self.grows == "down" else 1]
        if given and options.begin_with != 1:
            raise UsageError(
                f"trainer_mode.begin_with = {options.begin_with}: rack.init_from brings the {given} stacks that this "
                "rack begins with. Leave begin_with out."
            )
        if options.begin_with > rack.stacks:
            raise UsageError(f"trainer_mode.begin_with = {options.begin_with} is more than the {rack.stacks} stacks.")
        joined = sizes(given or options.begin_with, rack.stacks, options.growth)[bool(given) :]
        if options.building != "interleave":
            return joining_in_order(order, given, joined)
        if given:
            raise UsageError(
                'trainer_mode.building = "interleave": the stacks of rack.init_from lie one above the other. Use '
                '"append" or "prepend".'
            )
        return joining_between(rack.stacks, joined)

    def _finale(self, rack: RackSpec, budget: Budget, share: float, begins: float) -> list[Phase]:
        """Plan the last stretch, with the whole rack in the path."""
        if self.options.finale_scope == "stackwise":
            phases = one_at_a_time(rack, budget, share, self.options.cycles, begins, self.options.finale_lr, "finale")
        else:
            phases = [joint_phase(rack, budget, budget.share(share, begins), self.options.finale_lr, "finale")]
        if self.options.trunk != "adapters":
            return phases
        return [evolve(phase, trains=(), adapts=phase.trains, embedding=False, head=False) for phase in phases]
