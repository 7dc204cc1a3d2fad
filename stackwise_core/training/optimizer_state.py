"""An optimizer's state as tensors by name and plain numbers by name, so that nothing of it need be pickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stackwise_core.errors import StackwiseError

Number = int | float | bool

BLOCK = 256
"""Numbers of an 8-bit moment that share a scale (bitsandbytes)."""


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """Tensors and numbers by ``PARAMETER.KEY``, parameters by their place among all groups.

    Learning rates aren't in it: they follow from the step.

    Raises:
        StackwiseError: the optimizer keeps something else for a parameter.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, parameter in enumerate(parameters):
        # Of `state`, since bitsandbytes' `state_dict` wraps what is quantised once more.
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{key}"] = value
            elif isinstance(value, Number):
                numbers[f"{place}.{key}"] = value
            else:
                raise StackwiseError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} for a parameter, which can't be saved"
                )
    return tensors, numbers


def check_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number]
) -> None:
    """Refuse a state that can't be this optimizer's: its kernels believe in shapes and number formats.

    Raises:
        StackwiseError: a name, shape, number format or number isn't one that it has.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in {**tensors, **numbers}.items():
        place, _, key = name.partition(".")
        known = place.isdecimal() and int(place) < len(parameters)
        if not known or not _fits(key, value, parameters[int(place)]):
            raise StackwiseError(f"a checkpoint's optimizer state isn't that of what trains now: {name!r:.60}")


def _fits(key: str, value: Tensor | Number, parameter: Tensor) -> bool:
    """Whether a value can be what torch's or bitsandbytes' AdamW keeps for a parameter."""
    if not isinstance(value, Tensor):
        return key == "step" and type(value) is int and value >= 0
    shape, full = tuple(value.shape), value.dtype == torch.float32
    if key in ("exp_avg", "exp_avg_sq"):
        return shape == parameter.shape and value.dtype == parameter.dtype
    if key in ("state1", "state2"):
        return shape == parameter.shape and value.dtype in (torch.float32, torch.uint8)
    if key in ("qmap1", "qmap2"):
        return shape == (256,) and full
    if key in ("absmax1", "absmax2"):
        return shape == (-(-parameter.numel() // BLOCK),) and full
    return key == "step" and shape == () and full


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number]
) -> None:
    """Put back what ``optimizer_state`` gave, once ``check_optimizer_state`` has found that it is that."""
    state: dict[int, dict[str, Tensor | Number]] = {}
    for name, value in {**tensors, **numbers}.items():
        place, key = name.split(".", 1)
        # A copy, since what was read from a file shares its pages with all that is in it.
        state.setdefault(int(place), {})[key] = value.clone() if isinstance(value, Tensor) else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
