"""Comparison of the numbers of a rack with those of somebody else's model, which computes on the CPU."""

from torch import Tensor
from torch.testing import assert_close


def assert_same_numbers(ours: Tensor, theirs: Tensor) -> None:
    """Refuse other bits where both are on the CPU; the kernels of another device round otherwise."""
    close = {"rtol": 0.0, "atol": 0.0} if ours.device.type == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    assert_close(ours.detach().cpu(), theirs.detach(), **close)
