"""Base class of a precision whose frozen stacks are quantised: every linear layer is a :class:`QuantisedLinear`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stackwise_core.engine.process.bf16_device import require_bf16
from stackwise_core.engine.rack.quantised_linear import QuantisedLinear, WeightFormat
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.precision import Precision


class QuantisedPrecision(Precision):
    """A precision of frozen stacks only. A subclass has a ``weight_format`` and ``bytes_per_weight``.

    The norms, a thousandth of the weights, stay in fp32.
    """

    trainable = False
    quantises = True
    weight_format: WeightFormat
    """The format of every linear layer's weight."""
    without_bf16: str = "another precision"
    """What to take on a device that doesn't compute in bf16, for the message."""

    @property
    def dtype(self) -> torch.dtype:
        """The format that matrix products compute in: bf16 or fp32."""
        return torch.bfloat16

    def check(self, device: torch.device) -> None:
        if self.dtype is torch.bfloat16:
            require_bf16(device, self.without_bf16)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(device.type, dtype=self.dtype)

    def prepare(self, stack: nn.Module, *, trainable: bool) -> None:
        """Encode the weight of every linear layer.

        Raises:
            UsageError: full weights are to train.
            OutOfRange: a weight isn't finite, or is too large.
        """
        if trainable:
            raise UsageError("full weights can't train as codes; expected fp32, bf16 or fp16 for a stack that trains.")
        self._replace(stack, lambda layer, linear, name: layer.encode(linear.weight.detach(), f"{name}.weight"))

    def from_tensors(self, stack: nn.Module, tensors: dict[str, Tensor]) -> None:
        self._replace(stack, lambda layer, linear, name: None)
        stack.load_state_dict(tensors)

    def _replace(self, stack: nn.Module, fill: Callable[[QuantisedLinear, nn.Linear, str], None]) -> None:
        """Put a quantised layer in the place of each linear layer, one after the other; freeze all."""
        for name, linear in list(stack.named_modules()):
            if isinstance(linear, nn.Linear):
                layer = QuantisedLinear(
                    linear.in_features,
                    linear.out_features,
                    self.weight_format,
                    self.dtype,
                    device=linear.weight.device,
                    bias=linear.bias,
                ).train(linear.training)
                fill(layer, linear, name)
                stack.set_submodule(name, layer)
        stack.requires_grad_(False)
