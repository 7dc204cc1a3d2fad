"""Which stretch of the mask schedule a stack trains on."""

from stackwise_core.config.model import TrainingConfig


def stretch_of(stack: int, stacks: int, training: TrainingConfig, built: int) -> tuple[float, float]:
    """The stretch of progress that a stack's phase draws from.

    Over time, all of it. Over depth, the one point of its place: 0 for the first stack, 1 for the last. Over both, its
    own slice. Its place is the order in which stacks are built, or its position where
    ``training.noise_index`` says so.

    Args:
        built: how many stacks were built before it.
    """
    place = stack if training.noise_index == "position" else built
    if training.noise_over == "time":
        return (0.0, 1.0)
    if training.noise_over == "depth":
        point = place / (stacks - 1) if stacks > 1 else 0.0
        return (point, point)
    return (place / stacks, (place + 1) / stacks)
