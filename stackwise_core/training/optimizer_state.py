"""An optimizer's state as tensors by name and plain numbers by name, so that nothing of it need be pickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stackwise_core.errors import StackwiseError

Number = int | float | bool


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


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number]
) -> None:
    """Put back what ``optimizer_state`` gave.

    Raises:
        StackwiseError: it is that of other parameters.
    """
    state: dict[int, dict[str, Tensor | Number]] = {}
    for name, value in {**tensors, **numbers}.items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    if not set(state) <= {place for group in groups for place in group["params"]}:
        raise StackwiseError("a checkpoint's optimizer state is that of other parameters than train now")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
