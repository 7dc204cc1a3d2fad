"""Base class of a quantised linear layer: its weight is held as codes, and decoded each time that it is needed.

Any adapter can stand on it, since it is an ``nn.Linear`` with a ``weight`` [out, in], whatever its format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stackwise_core.engine.rack.number_range import NumberRange
from stackwise_core.interfaces.component import ContractError


class WeightFormat(ABC):
    """A format for a weight [out, in]: which tensors hold it, and how they are made and read."""

    numbers: NumberRange = NumberRange("8 bits or fewer", 2.0**16, "Take bf16 or fp32.")
    """The weights that it takes. Models have none beyond 2^16, and decoding in 16 bits has the room for these."""

    @abstractmethod
    def empty(self, out_features: int, in_features: int, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors, by name, of a weight of this size, with anything in them.

        Codes are integers, such as ``torch.uint8``. Scales are floats of 16 bits or more: in narrower ones torch
        computes nothing, and libraries cast adapters to them.
        """

    @abstractmethod
    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the tensors of an fp32 weight, as ``empty`` announces them."""

    @abstractmethod
    def decode(self, tensors: tuple[Tensor, ...], in_features: int, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] in a floating-point format, from the tensors in the order of ``empty``."""


class QuantisedLinear(nn.Linear):
    """A linear layer on a :class:`WeightFormat`'s tensors, which are its buffers. Its weight never trains.

    peft and others may treat it as the ``nn.Linear`` that it is, save for one thing: ``weight`` is decoded whenever it
    is read, so writing to what it gives, as peft's ``merge`` does, has no effect.

    Args:
        dtype: what the matrix product computes in, whatever the input is in; the output is in it too.
        bias: [out], if there is one.

    Raises:
        ContractError: the format's tensors are such that adapters can't stand on them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_format: WeightFormat,
        dtype: torch.dtype,
        *,
        device: torch.device,
        bias: nn.Parameter | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = in_features, out_features
        self.weight_format, self.dtype = weight_format, dtype
        tensors = weight_format.empty(out_features, in_features, device)
        self.buffer_names = tuple(tensors)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.element_size() < 2:
                raise ContractError(
                    weight_format, f"empty() gave {name} as {tensor.dtype}; expected codes as integers, such as uint8"
                )
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    def encode(self, weight: Tensor, name: str) -> None:
        """Take on a weight, fp32 [out, in].

        Args:
            name: of the weight, for messages.

        Raises:
            OutOfRange: not all of it is finite and of a sensible size.
            ContractError: the format gave other tensors than it announced.
        """
        self.weight_format.numbers.check(weight, name)
        encoded = self.weight_format.encode(weight)
        announced, found = (
            {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}
            for tensors in (dict(zip(self.buffer_names, self.tensors, strict=True)), encoded)
        )
        if found != announced:
            raise ContractError(
                self.weight_format, f"encode() gave {found} for {name}; expected {announced}, as empty() gave"
            )
        for buffer, tensor in encoded.items():
            self.get_buffer(buffer).copy_(tensor)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The format's tensors."""
        return tuple(self.get_buffer(name) for name in self.buffer_names)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in], decoded into a new tensor."""
        return self.weight_format.decode(self.tensors, self.in_features, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _DecodedLinear.apply(x.to(self.dtype), self.weight_format, self.in_features, *self.tensors)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _DecodedLinear(torch.autograd.Function):
    """x [..., in] times the weight, keeping only its codes for the gradient to x; there is none to the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_format: WeightFormat, in_features: int, *tensors: Tensor) -> Tensor:
        ctx.weight_format, ctx.in_features = weight_format, in_features
        ctx.save_for_backward(*tensors)
        return F.linear(x, weight_format.decode(tensors, in_features, x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.weight_format.decode(ctx.saved_tensors, ctx.in_features, gradient.dtype)
        return gradient @ weight, *(None for _ in ctx.needs_input_grad[1:])
