"""Settings that ask for more than the machine has, and what the run uses in their place."""

from __future__ import annotations

from collections.abc import Sequence

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.phases.phase_steps import first_step, largest_window, sample_order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.phase_plan import PhasePlan

NEARLY = 0.9
"""Share of what was asked for from which on no note is due: an epoch's last step has what is left."""


def settings_out_of_reach(planned: Sequence[PhasePlan], setup: Setup) -> list[str]:
    """List settings whose effect differs from their value, for the plan's notes."""
    order = sample_order(setup)
    return [*_of_steps(order, setup), *_of_masks(planned, order, setup), *_of_validations(planned, setup)]


def _of_steps(order: Order, setup: Setup) -> list[str]:
    """Note how many sequences a step has, where it isn't as many as asked for, and a window."""
    training, said = setup.config.training, []
    asked, steps = _asked_for(training)
    windows = order.window_sizes(0)
    each = order.samples / sum(count for _, count in windows)
    if order.samples < steps:
        said.append(
            f"{asked} is more than the {_sequences(order.samples)} of the training split: a step has no more, and "
            "the plan counts with that."
        )
    elif each < NEARLY * steps:
        said.append(
            f"A step has {each:.3g} sequences on average, and {asked} at most: a window's last step has what is left "
            f"of its {largest_window(setup)} sequences."
        )
    if largest_window(setup) * NEARLY > setup.window:
        said.append(
            f"training.window = {setup.window} comes to {largest_window(setup)} sequences: a window holds whole chunks "
            f"of {_sequences(order.chunk_size)}."
        )
    return said


def _asked_for(training: TrainingConfig) -> tuple[str, int]:
    """Return what the configuration says of a step's sequences, and how many that are."""
    sequences = training.batch_size * training.gradient_accumulation
    if training.gradient_accumulation == 1:
        return f"training.batch_size = {sequences}", sequences
    return f"training.batch_size x gradient_accumulation = {sequences}", sequences


def _of_masks(planned: Sequence[PhasePlan], order: Order, setup: Setup) -> list[str]:
    """Note how many of a sample's masks are used, where more were asked for."""
    asked = setup.config.training.masks_per_sample
    fixed = [plan for plan in planned if plan.band is not None and plan.phase.masks == "fixed"]
    if not fixed or asked <= TrainingConfig().masks_per_sample:
        return []
    used = max(order.epoch_of(first_step(plan.phase, order) + plan.steps - 1)[0] + 1 for plan in fixed)
    if used >= asked:
        return []
    times = "once" if used == 1 else f"{used} times"
    return [
        f"training.masks_per_sample = {asked}: the text is passed {times} at most, so that {used} of them are used."
    ]


def _of_validations(planned: Sequence[PhasePlan], setup: Setup) -> list[str]:
    """Note what is measured on and how often, where it is less than asked for."""
    asked, there, said = setup.config.evaluation, len(setup.corpus.validation), []
    if there and asked.sequences is not None and asked.sequences > there:
        said.append(f"evaluation.sequences = {asked.sequences}: the validation split has {there}, and all are used.")
    if there and asked.every is not None:
        never = [plan for plan in planned if plan.steps < asked.every]
        if never:
            names = ", ".join(plan.phase.name for plan in never[:3]) + (", ..." if len(never) > 3 else "")
            stops = ", and so no early stop" if setup.config.training.patience is not None else ""
            said.append(
                f"evaluation.every = {asked.every} is more than the steps of {names}: no validation{stops} there."
            )
    return said


def _sequences(count: int) -> str:
    return f"{count} sequence{'' if count == 1 else 's'}"
