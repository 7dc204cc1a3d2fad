"""The optimizer of a phase: groups of parameters, each with its learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stackwise_core.config.model import TrainingConfig
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.optimizer import Optimizer


def make_optimizer(
    optimizer: Optimizer, named: list[tuple[str, nn.Parameter]], training: TrainingConfig, factor: float = 1.0
) -> torch.optim.Optimizer:
    """Make the optimizer of what trains.

    Args:
        named: parameters by their names in ``Placement.trainable``. Only the matrices of embedding, stacks and head
            decay: an adapter's product would shrink with both of its factors.
        factor: of all learning rates.

    Raises:
        ContractError: the plugin made something else than an optimizer of these parameters.
    """
    groups: dict[tuple[float, float, int | None], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = parameter.ndim >= 2 and not name.startswith("adapters.")
        unit = unit_of(name) if training.clip == "stack" else None  # whose gradients are clipped together
        key = (factor * learning_rate(name, training), training.weight_decay if decays else 0.0, unit)
        groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": members, "lr": lr, "weight_decay": decay} for (lr, decay, _), members in groups.items()
    ]
    made = optimizer.make(settings)
    if not isinstance(made, torch.optim.Optimizer):
        raise ContractError(optimizer, f"make() gave {type(made).__name__}, expected a torch.optim.Optimizer")
    expected = [(each["lr"], [id(parameter) for parameter in each["params"]]) for each in settings]
    if [(each["lr"], [id(parameter) for parameter in each["params"]]) for each in made.param_groups] != expected:
        raise ContractError(optimizer, "make() gave an optimizer of other groups than it was given")
    return made


def learning_rate(name: str, training: TrainingConfig) -> float:
    """Return the peak learning rate of a parameter by its name in ``Placement.trainable``."""
    part, *rest = name.split(".")
    if part in ("stacks", "adapters"):
        peak = training.block_lr if part == "stacks" else training.adapter_lr
        return peak * training.stack_lr_multipliers.get(int(rest[0]), 1.0)
    return training.head_lr if part == "lm_head" else training.embedding_lr


def unit_of(name: str) -> int | None:
    """Return the stack that a parameter belongs to; None for embedding and head."""
    part, *rest = name.split(".")
    return int(rest[0]) if part in ("stacks", "adapters") else None
