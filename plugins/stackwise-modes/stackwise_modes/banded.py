"""Depth as time: each stack reads the tokens directly, and trains on and serves its own band of mask fractions."""

from attrs import evolve

from stackwise_core.interfaces.budget import Budget
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import Route
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_modes.cycles import refuse_less_than_a_step


class Banded(TrainerMode):
    """Mode of independent stacks of equal probability mass (DiffusionBlocks, arXiv 2506.14202).

    They train in short phases and cycles.
    """

    def partition(self, rack: RackSpec) -> RackSpec:
        return evolve(rack, ends="per_stack" if self.options.shared == "per_stack" else "shared")

    def routes(self, rack: RackSpec) -> list[Route]:
        return [Route(path=[stack], progress=_band(stack, rack.stacks)) for stack in range(rack.stacks)]

    def plan(self, rack: RackSpec, budget: Budget) -> list[Phase]:
        budget.only_over_time('trainer mode "banded"')
        share = 1 / self.options.cycles
        refuse_less_than_a_step(budget, share, self.options.cycles)
        phases: list[Phase] = []
        for cycle in range(self.options.cycles):
            for stack in range(rack.stacks):
                first = not phases and not rack.given
                low, high = _band(stack, rack.stacks)
                wider = self.options.widen * (high - low)
                phases.append(
                    Phase(
                        name=f"cycle {cycle}, stack {stack}",
                        path=[stack],
                        trains={stack},
                        embedding=first or self.options.shared != "after_first",
                        head=first or self.options.shared != "after_first" or budget.head == "trains",
                        progress=(max(0.0, low - wider), min(1.0, high + wider)),
                        **budget.mask_fields,
                        **budget.share(share, share * cycle),
                    )
                )
        return phases


def _band(stack: int, stacks: int) -> tuple[float, float]:
    """Return equal stretches of progress, and so of probability; the stack at the bottom has the lightest noise."""
    return (stack / stacks, (stack + 1) / stacks)
