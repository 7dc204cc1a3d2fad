"""The hook ``optimizer`` (provisional): the rule by which a step's gradients change the weights that train."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Optimizer(Component):
    """Maker of the optimizer of a phase.

    The engine does the rest: learning rates and their schedule, weight decay by group, clipping, bad steps. It sets
    ``param_groups[i]["lr"]`` before each step. An optimizer with ``_step_supports_amp_scaling = True`` (torch's fused
    ones) gets ``grad_scale`` and ``found_inf`` as ``torch.amp.GradScaler`` sets them; for others the host waits in each
    step until it knows whether the step counts.
    """

    @property
    @abstractmethod
    def state_bytes(self) -> float:
        """Bytes of state for each weight that trains, for the plan."""

    @abstractmethod
    def make(self, groups: "Sequence[dict[str, Any]]") -> "torch.optim.Optimizer":
        """Make the optimizer of some parameters: all, or one stack's.

        Its state for a parameter must be tensors and plain numbers only, so that a checkpoint needs no pickle. All of
        its state must be there: where a stack is streamed, its optimizer is made anew for every step, with new groups.

        Args:
            groups: parameter groups of ``torch.optim``, with ``params``, ``lr`` and ``weight_decay``.
        """

    def check(self, device: "torch.device") -> None:
        """Refuse a device that it can't run on.

        Raises:
            UnavailableError: with the reason, and what to use instead.
        """

    def fits(self, key: str, value: "Tensor | int | float | bool", parameter: "Tensor") -> bool:
        """Return whether a value of a checkpoint's state can be loaded. Kernels trust its shape and number format.

        By default a tensor must have the parameter's shape, in its format or fp32, or be a counter in fp32; a number
        must be a count.

        Args:
            key: the name in ``optimizer.state[parameter]``.
        """
        import torch

        if not isinstance(value, torch.Tensor):
            return type(value) is int and value >= 0
        if not value.shape:
            return value.dtype == torch.float32
        return value.shape == parameter.shape and value.dtype in (parameter.dtype, torch.float32)
