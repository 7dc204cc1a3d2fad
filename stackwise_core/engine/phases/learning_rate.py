"""The course of the learning rate, within a phase or over all of them."""

import math

from stackwise_core.config.model import TrainingConfig

CURVE = 24
"""Lines that a cosine is drawn with."""


def learning_rate_factor(step: int, steps: int, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate at a step (from 0) of a schedule's steps: a phase's, or the run's.

    A linear warm-up, then the course that ``training.lr_schedule`` names, down to ``training.final_lr``. wsd is
    warm-up, stable, decay (arXiv 2404.06395).
    """
    warmup = math.ceil(training.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if training.lr_schedule == "constant":
        return 1.0
    begin = warmup
    if training.lr_schedule == "wsd":
        begin = max(warmup, steps - math.ceil(training.decay * steps))
    if step < begin:
        return 1.0
    done = (step - begin + 1) / max(1, steps - begin)
    course = (1 + math.cos(math.pi * done)) / 2 if training.lr_schedule == "cosine" else 1 - done
    return training.final_lr + (1 - training.final_lr) * course


def rate_points(first: int, steps: int, total: int, training: TrainingConfig) -> list[tuple[int, float]]:
    """Return the share of the peak learning rate at those steps of a phase between which it is a line, or nearly so.

    Args:
        first: place of the phase's first step in the schedule.
        steps: of the phase.
        total: steps of the schedule.
    """
    corners = {0, steps - 1}
    warmup = math.ceil(training.warmup * total)
    for corner in (warmup - 1, warmup, total - math.ceil(training.decay * total), total - 1):
        corners |= {corner - first - 1, corner - first}
    if training.lr_schedule == "cosine":
        corners |= {step * (steps - 1) // CURVE for step in range(CURVE)}
    inside = sorted(step for step in corners if 0 <= step < steps)
    return [(step, learning_rate_factor(first + step, total, training)) for step in inside]
