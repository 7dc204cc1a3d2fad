"""The range of a number format, and the one check of whatever is converted to it: weights, activations, exports."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.errors import StackwiseError

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class OutOfRange(StackwiseError):
    """A number that isn't finite, or that a format can't hold. The message begins with the tensor's name."""


@frozen
class NumberRange:
    """The finite numbers that a format holds."""

    format: str
    """Name in messages."""
    largest: float
    """The largest magnitude."""
    instead: str = ""
    """A sentence: what to take where a number is beyond it."""

    @classmethod
    def of(cls, dtype: torch.dtype, instead: str = "") -> NumberRange:
        """Return the range of one of torch's floating-point formats."""
        return cls(_NAMES.get(dtype, str(dtype).removeprefix("torch.")), torch.finfo(dtype).max, instead)

    def holds(self, values: Tensor) -> bool:
        """Return whether all values are finite and within the range. Takes one pass and no memory."""
        if not values.numel():
            return True
        low, high = (float(end) for end in values.detach().aminmax())  # one NaN makes both NaN
        return -low <= self.largest and high <= self.largest

    def check(self, values: Tensor, name: str) -> None:
        """Refuse values that the format can't hold.

        Args:
            name: of the tensor, for the message.

        Raises:
            OutOfRange: with the first of them and its place.
        """
        if self.holds(values):
            return
        unfit = ~(values.detach().abs() <= self.largest)
        place = unfit.nonzero()[0].tolist()
        value, count = values[tuple(place)].item(), f"{int(unfit.sum())} of {values.numel()} numbers"
        if not math.isfinite(value):
            raise OutOfRange(f"{name} isn't finite: {value:g} at {place} ({count} are like that).")
        beyond = f"{value:.6g} at {place} ({count} are beyond it)"
        held = f"it holds numbers from {-self.largest:.6g} to {self.largest:.6g}"
        raise OutOfRange(f"{name} can't be held in {self.format}: {beyond}; {held}. {self.instead}".rstrip())


FINITE = NumberRange.of(torch.float32)
"""The range of full-precision weights and of hidden states: whatever is finite."""
