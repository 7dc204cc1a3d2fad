"""Clipping of gradients: by the norm of all of them, or of each stack's (``training.clip``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from stackwise_core.config.model import TrainingConfig


def norm_of(norms: Sequence[Tensor]) -> float:
    """Return the norm of gradients together, from the norm of each; 0 where there are none."""
    return float(torch.linalg.vector_norm(torch.stack(list(norms)))) if norms else 0.0


def clip(parameters: Iterable[nn.Parameter], norm: float, training: TrainingConfig) -> None:
    """Scale gradients down to ``training.max_grad_norm``, if their norm is larger."""
    if math.isfinite(norm) and training.max_grad_norm:
        nn.utils.clip_grads_with_norm_(parameters, training.max_grad_norm, torch.tensor(norm))
