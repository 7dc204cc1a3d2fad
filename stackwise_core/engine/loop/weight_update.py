"""Update of weights by clipped gradients. Whether a step counts is decided on the device; the host doesn't wait for it.

Gradients are scaled down to ``training.max_grad_norm`` (Pascanu et al. 2013, arXiv 1211.5063) by the norm of all of
them, or of each stack's (``training.clip``). Torch's fused optimizers take the scale, and whether to leave weights and
moments as they are, as tensors; loss scalers of fp16 give them the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stackwise_core.config.model import TrainingConfig

ALMOST_ZERO = 1e-6
"""Added to a norm that is divided by, as ``torch.nn.utils.clip_grad_norm_`` does."""


class StepNumbers(NamedTuple):
    """Numbers of a step's backward pass, on the device."""

    loss: Tensor
    """float64 [], nats a token."""
    grad_norm: Tensor
    """fp32 [], the norm of all gradients together."""
    norms: Tensor
    """fp32 [P], the norm of each parameter's gradient."""

    @property
    def are_finite(self) -> Tensor:
        """bool [], whether the step counts."""
        return (self.loss + self.grad_norm).isfinite()

    @property
    def together(self) -> Tensor:
        """float64 [2 + P]: loss, norm, and each parameter's norm."""
        return torch.cat((self.loss[None], self.grad_norm[None].double(), self.norms.double()))


def norm_of(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm [] of gradients together, from the norm of each; 0 where there are none."""
    return torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros((), device=device)


def update_weights(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[dict[str, Any]],
    norm: Tensor,
    is_good: Tensor,
    training: TrainingConfig,
) -> None:
    """Clip the gradients of an optimizer's groups, and move their weights, where the step is good.

    Args:
        groups: some of the optimizer's, or all of them.
        norm: fp32 [], that the gradients are clipped by.
        is_good: bool [], on the device. An optimizer that isn't one of torch's fused ones makes the host wait for it.
    """
    chosen = {id(group) for group in groups}
    others = [each for group in optimizer.param_groups if id(group) not in chosen for each in group["params"]]
    waiting = [each.grad for each in others]
    for each in others:
        each.grad = None  # without which an optimizer leaves a parameter alone
    try:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            _update_on_device(optimizer, norm, is_good, training.max_grad_norm)
        elif is_good:
            if training.max_grad_norm:
                parameters = (each for group in groups for each in group["params"])
                torch.nn.utils.clip_grads_with_norm_(parameters, training.max_grad_norm, norm)
            optimizer.step()
    finally:
        for each, gradient in zip(others, waiting, strict=True):
            each.grad = gradient


def _update_on_device(optimizer: Any, norm: Tensor, is_good: Tensor, most: float) -> None:
    """Take a fused optimizer's step as ``torch.amp.GradScaler`` does."""
    optimizer.found_inf = is_good.logical_not().float()
    optimizer.grad_scale = ((norm + ALMOST_ZERO) / most).clamp(min=1.0) if most else None
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale
