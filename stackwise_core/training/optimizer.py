"""The optimizer of a phase: AdamW of torch or of bitsandbytes, with a learning rate for each part of the rack."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import UnavailableError
from stackwise_core.quiet_imports import importing_quietly

STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "paged_adamw": 8.0, "paged_adamw_8bit": 2 * (1 + 4 / 256)}
"""Bytes of optimizer state a weight that trains; in 8 bits each block of 256 has an fp32 scale."""


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that isn't there.

    Raises:
        UnavailableError: bitsandbytes isn't installed, or a CPU should page.
    """
    if name == "adamw":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnavailableError(
            f'training.optimizer = "{name}" needs the package bitsandbytes, which is not installed. '
            "Install it with: pip install bitsandbytes"
        )
    if name.startswith("paged_") and device.type == "cpu":
        raise UnavailableError(
            f'training.optimizer = "{name}" moves its state between a CUDA device and the CPU, and this run is on the '
            f'CPU. Use "{name.removeprefix("paged_")}".'
        )


def make_optimizer(
    named: list[tuple[str, nn.Parameter]], training: TrainingConfig, factor: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); in 8 bits after Dettmers et al. 2022, where small tensors keep 32.

    Args:
        named: parameters by their names in ``Residency.trainable``. Only the matrices of embedding, stacks and head
            decay: an adapter's product would shrink with both of its factors.
        factor: of all learning rates.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = parameter.ndim >= 2 and not name.startswith("adapters.")
        key = (factor * learning_rate(name, training), training.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    settings = [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(settings, betas=training.betas, eps=training.eps, fused=True)
    with importing_quietly():
        import bitsandbytes

    made = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }[training.optimizer]
    optimizer: torch.optim.Optimizer = made(settings, betas=training.betas, eps=training.eps)
    return optimizer


def learning_rate(name: str, training: TrainingConfig) -> float:
    """The peak learning rate of a parameter by its name in ``Residency.trainable``."""
    part, *rest = name.split(".")
    if part in ("stacks", "adapters"):
        peak = training.block_lr if part == "stacks" else training.adapter_lr
        return peak * training.stack_lr_multipliers.get(int(rest[0]), 1.0)
    return training.head_lr if part == "lm_head" else training.embedding_lr
