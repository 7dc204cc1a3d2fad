"""The hook ``optimizer`` (provisional): the rule by which a step's gradients change the weights that train."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stackwise_core.interfaces.component import Component

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Optimizer(Component):
    """Rule that makes the optimizer of a phase.

    Learning rates, their schedule, weight decay by group, clipping and bad steps are the engine's. It sets
    ``param_groups[i]["lr"]`` before each step.
    """

    @property
    @abstractmethod
    def state_bytes(self) -> float:
        """Bytes of state for each weight that trains; the plan counts with it."""

    @abstractmethod
    def make(self, groups: "Sequence[dict[str, Any]]") -> "torch.optim.Optimizer":
        """Make the optimizer of some parameters, all or a stack's.

        Its state for a parameter is tensors and plain numbers only, so that a checkpoint holds it without a pickle.

        Args:
            groups: as ``torch.optim`` takes them, with ``params``, ``lr`` and ``weight_decay``.
        """

    def check(self, device: "torch.device") -> None:
        """Refuse a device that it can't run on.

        Raises:
            UnavailableError: with the reason, and what to use instead.
        """

    def fits(self, key: str, value: "Tensor | int | float | bool", parameter: "Tensor") -> bool:
        """Return whether a value of a checkpoint's state can be loaded: kernels trust shapes and number formats.

        By default tensors have the parameter's shape, in its format or fp32, or are a counter in fp32; numbers are
        counts.

        Args:
            key: the name in ``optimizer.state[parameter]``.
        """
        import torch

        if not isinstance(value, torch.Tensor):
            return type(value) is int and value >= 0
        if not value.shape:
            return value.dtype == torch.float32
        return value.shape == parameter.shape and value.dtype in (parameter.dtype, torch.float32)
