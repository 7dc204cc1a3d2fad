"""A trainer mode for benchmarks: everything trains at once, for a few steps, however many stacks there are."""

from attrs import frozen

from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.options import at_least, option


@frozen
class FewStepsOptions:
    steps: int = option(3, "Optimizer steps.", check=at_least(1))


class FewSteps(TrainerMode):
    """Mode of one phase."""

    def plan(self, rack, budget):
        every = range(rack.stacks)
        return [
            Phase(
                name="all",
                path=every,
                trains=every,
                embedding=True,
                head=True,
                steps=self.options.steps,
                **budget.mask_fields,
            )
        ]


@hookimpl
def trainer_mode():
    options = "few_steps:FewStepsOptions"
    return [Implementation("few_steps", "A few steps end to end", "few_steps:FewSteps", options)]
