"""Entries as rows of bytes, which a store moves without knowing what they mean."""

import numpy as np
import torch
from torch import Tensor

from stackwise_core.interfaces.cache_backend import Layout


def as_bytes(entries: Tensor) -> np.ndarray:
    """Return entries [n, tokens, row], on any device, as uint8 [n, bytes]; without a copy if they are contiguous."""
    return entries.detach().cpu().contiguous().view(torch.uint8).flatten(1).numpy()


def unfilled(count: int, layout: Layout) -> tuple[Tensor, np.ndarray]:
    """Return entries [count, tokens, row] to be filled, and the same memory as uint8 [count, bytes]."""
    entries = torch.empty((count, *layout.shape), dtype=layout.torch_dtype)
    return entries, entries.view(torch.uint8).view(count, layout.bytes_per_entry).numpy()
