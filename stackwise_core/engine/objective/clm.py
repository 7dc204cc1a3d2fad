"""Causal language modelling."""

from stackwise_core.interfaces.objective import Objective


class CLM(Objective):
    """Predicts each token from those before it, by the mean of the cross entropies."""
