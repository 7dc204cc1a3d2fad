"""An optimizer's state as tensors by name and plain numbers by name, so that nothing of it need be pickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.optimizer import Optimizer

Number = int | float | bool


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """Return tensors and numbers by ``PARAMETER.KEY``, parameters by their place among all groups.

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
    plugin: Optimizer, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number]
) -> None:
    """Refuse a state that can't be this optimizer's: its kernels believe in shapes and number formats.

    Raises:
        StackwiseError: a name, shape, number format or number isn't one that it has.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in {**tensors, **numbers}.items():
        place, _, key = name.partition(".")
        known = place.isdecimal() and int(place) < len(parameters)
        if not known or not plugin.fits(key, value, parameters[int(place)]):
            raise StackwiseError(f"a checkpoint's optimizer state isn't that of what trains now: {name!r:.60}")


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Number],
    *,
    copy: bool = True,
) -> None:
    """Put back what ``optimizer_state`` gave, once ``check_optimizer_state`` has found that it is that.

    Args:
        copy: whether tensors are copied, since what was read from a file shares its pages with all that is in it. If
            not, the optimizer goes on with these.
    """
    state: dict[int, dict[str, Tensor | Number]] = {}
    for name, value in {**tensors, **numbers}.items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = value.clone() if copy and isinstance(value, Tensor) else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
