"""Steps of a phase: in which order they visit the samples, how many there are, and what they predict."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stackwise_core.engine.draws.order import Order
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.interfaces.phase import Phase


def sample_order(setup: Setup) -> Order:
    """Return the order in which the training split is visited."""
    training, data = setup.config.training, setup.config.data
    return Order(
        samples=len(setup.corpus.train),
        seq_len=data.seq_len,
        window=setup.window,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation,
        seed=setup.config.run.seed,
        chunk_tokens=setup.chunk_tokens,
    )


def largest_window(setup: Setup) -> int:
    """Return the number of sequences of the largest window."""
    return max(samples for samples, _ in sample_order(setup).window_sizes(0))


def largest_batch(setup: Setup) -> int:
    """Return the sequences of the largest forward pass in training: ``batch_size``, or as many as there are."""
    return min(setup.config.training.batch_size, largest_window(setup))


def first_step(phase: Phase, order: Order) -> int:
    """Return where in the stream of steps a phase begins."""
    return int(phase.begins) if phase.steps else order.step_at(phase.begins)


def phase_steps(phase: Phase, order: Order) -> int:
    """Return the number of optimizer steps of a phase."""
    return phase.steps or max(1, order.step_at(phase.begins + phase.epochs) - order.step_at(phase.begins))


def phase_epochs(phase: Phase, order: Order) -> float:
    """Return the number of passes over the training split that a phase makes."""
    return phase.steps / order.steps_per_epoch() if phase.steps else phase.epochs


def distinct_draws(phase: Phase, order: Order) -> float:
    """Return how many draws of each sample a phase trains on."""
    epochs = phase_epochs(phase, order)
    return min(epochs, phase.masks_per_sample) if phase.masks == "fixed" else epochs


def predicted_share(phase: Phase, setup: Setup) -> float:
    """Return the expected share of the tokens that the head is asked for."""
    if setup.implementations.objective.options.causal:
        return 1.0
    return float(_fractions(phase, setup).mean())


def predicted_spread(phase: Phase, setup: Setup) -> float:
    """Return the standard deviation of that share among passes, whose sequences are masked independently."""
    if setup.implementations.objective.options.causal:
        return 0.0
    return float(_fractions(phase, setup).std(correction=0)) / math.sqrt(largest_batch(setup))


def largest_predicted_share(phase: Phase, setup: Setup) -> float:
    """Return the share of the tokens of the fullest passes: two standard deviations above the expected one."""
    return min(1.0, predicted_share(phase, setup) + 2 * predicted_spread(phase, setup))


def _fractions(phase: Phase, setup: Setup) -> Tensor:
    """Return mask fractions at equal steps of a phase's progress."""
    low, high = phase.progress
    places = low + (high - low) * (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    return setup.noise.fraction(places)
