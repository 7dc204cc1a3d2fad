"""A frozen linear layer whose weight is held as codes, and decoded each time that it is needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stackwise_core.number_range import NumberRange

LARGEST_WEIGHT = 2.0**16
"""No larger weights are encoded. Models have none, and decoding in 16 bits has the room for these."""
ENCODED = NumberRange("8 bits or fewer", LARGEST_WEIGHT, "Take bf16 or fp32.")


class Codebook(ABC):
    """A format for a weight [out, in]: which tensors hold it, and how they are made and read."""

    @abstractmethod
    def empty(self, out_features: int, in_features: int, device: torch.device) -> dict[str, Tensor]:
        """The tensors, by name, of a weight of this size, with anything in them."""

    @abstractmethod
    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of an fp32 weight."""

    @abstractmethod
    def decode(self, tensors: tuple[Tensor, ...], in_features: int, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in a floating-point format, from the tensors in the order of ``empty``."""


class CodebookLinear(nn.Linear):
    """A linear layer on a :class:`Codebook`'s tensors, which are its buffers. Its weight never trains.

    peft and others may treat it as the ``nn.Linear`` that it is, save for one thing: ``weight`` is decoded whenever it
    is read, so writing to what it gives, as peft's ``merge`` does, has no effect.

    Args:
        dtype: what the matrix product computes in, whatever the input is in; the output is in it too.
        bias: [out], if there is one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codebook: Codebook,
        dtype: torch.dtype,
        *,
        device: torch.device,
        bias: nn.Parameter | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = in_features, out_features
        self.codebook, self.dtype = codebook, dtype
        tensors = codebook.empty(out_features, in_features, device)
        self.buffer_names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    def encode(self, weight: Tensor, name: str) -> None:
        """Take on a weight, fp32 [out, in].

        Raises:
            OutOfRange: not all of it is finite and of a sensible size; ``name`` says which weight it was.
        """
        ENCODED.check(weight, name)
        for buffer, tensor in self.codebook.encode(weight).items():
            self.get_buffer(buffer).copy_(tensor)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The codebook's tensors."""
        return tuple(self.get_buffer(name) for name in self.buffer_names)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in], decoded into a new tensor."""
        return self.codebook.decode(self.tensors, self.in_features, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _DecodedLinear.apply(x.to(self.dtype), self.codebook, self.in_features, *self.tensors)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _DecodedLinear(torch.autograd.Function):
    """x [..., in] times the weight, keeping only its codes for the gradient to x; there is none to the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codebook: Codebook, in_features: int, *tensors: Tensor) -> Tensor:
        ctx.codebook, ctx.in_features = codebook, in_features
        ctx.save_for_backward(*tensors)
        return F.linear(x, codebook.decode(tensors, in_features, x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.codebook.decode(ctx.saved_tensors, ctx.in_features, gradient.dtype)
        return gradient @ weight, *(None for _ in ctx.needs_input_grad[1:])
