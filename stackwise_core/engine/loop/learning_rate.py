"""The course of the learning rate, within a phase or over all of them."""

import math

from stackwise_core.config.model import TrainingConfig


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
