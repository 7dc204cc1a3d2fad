"""Stack after stack, each on the boundary of the frozen ones below it."""

from attrs import evolve

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode


def stretch_of(stack: int, stacks: int, training: TrainingConfig) -> tuple[float, float]:
    """The stretch of the mask schedule's progress that a stack's phase draws from.

    Over time, all of it. Over depth, the one point of its place: 0 for the first stack, 1 for the last. Over both, its
    own slice.
    """
    if training.over == "time":
        return (0.0, 1.0)
    if training.over == "depth":
        place = stack / (stacks - 1) if stacks > 1 else 0.0
        return (place, place)
    return (stack / stacks, (stack + 1) / stacks)


class Blockwise(TrainerMode):
    """A phase a stack: the first trains with embedding and head, each later one alone on top of what is frozen."""

    def plan(self, rack: RackSpec, training: TrainingConfig) -> list[Phase]:
        return [
            Phase(
                name=f"stack {stack}",
                path=range(stack + 1),
                trains={stack},
                embedding=stack == 0,
                head=stack == 0 or training.head == "trains",
                progress=stretch_of(stack, rack.stacks, training),
                masks=training.masks,
                masks_per_sample=training.masks_per_sample,
                epochs=training.epochs_per_stack,
                steps=training.steps_per_stack,
            )
            for stack in range(rack.stacks)
        ]


class Layerwise(Blockwise):
    """Blockwise over a rack that is cut into stacks of one block each."""

    def partition(self, rack: RackSpec) -> RackSpec:
        return evolve(rack, blocks=(1,) * sum(rack.blocks))
