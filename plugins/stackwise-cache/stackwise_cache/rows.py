"""Entries as rows of bytes, which a store moves without knowing what they mean."""

import numpy as np
import torch
from torch import Tensor


def as_bytes(entries: Tensor) -> np.ndarray:
    """Return entries [n, tokens, row], on any device, as uint8 [n, bytes]; without a copy if they are contiguous."""
    return entries.detach().cpu().contiguous().view(torch.uint8).flatten(1).numpy()


def rows_of(entries: Tensor) -> np.ndarray | None:
    """Return the memory of entries [n, tokens, row] as uint8 [n, bytes]; None unless contiguous, and on the CPU."""
    if entries.device.type != "cpu" or not entries.is_contiguous():
        return None
    return entries.detach().flatten(1).view(torch.uint8).numpy()
