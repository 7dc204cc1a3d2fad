"""What the quantised precisions share: every linear layer of a frozen stack becomes a codebook's."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.precision import Precision
from stackwise_precision.bf16_device import require_bf16
from stackwise_precision.codebook_linear import Codebook, CodebookLinear


class CodebookPrecision(Precision):
    """Frozen stacks only. The norms, a thousandth of the weights, stay in fp32."""

    trainable = False
    quantises = True
    codebook: Codebook

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products compute in."""
        return torch.bfloat16 if self.options.compute == "bf16" else torch.float32

    def check(self, device: torch.device) -> None:
        if self.dtype is torch.bfloat16:
            require_bf16(device, 'compute = "fp32"')

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

    def _replace(self, stack: nn.Module, fill: Callable[[CodebookLinear, nn.Linear, str], None]) -> None:
        """Put a codebook's layer in the place of each linear layer, one after the other; freeze all."""
        for name, linear in list(stack.named_modules()):
            if isinstance(linear, nn.Linear):
                layer = CodebookLinear(
                    linear.in_features,
                    linear.out_features,
                    self.codebook,
                    self.dtype,
                    device=linear.weight.device,
                    bias=linear.bias,
                ).train(linear.training)
                fill(layer, linear, name)
                parent, _, own_name = name.rpartition(".")
                setattr(stack.get_submodule(parent), own_name, layer)
        stack.requires_grad_(False)
