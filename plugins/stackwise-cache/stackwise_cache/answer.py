"""The memory that ``get`` answers in."""

import sys

import numpy as np
import torch
from torch import Tensor

from stackwise_core.interfaces.cache_backend import Layout


class AnswerRoom:
    """Gives the same memory again once nobody holds the answer before.

    Fresh memory costs more than the copy into it: the system has to find and clear each of its pages.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._bytes = np.empty(layout.bytes_per_entry, np.uint8)

    def take(self, count: int) -> tuple[Tensor, np.ndarray]:
        """Entries [count, tokens, row] to be filled, and the same memory as uint8 [count, bytes]."""
        size = count * self._layout.bytes_per_entry
        # A tensor of this memory, or any view of one, holds a reference beside ours and the call's.
        if self._bytes.size < size or sys.getrefcount(self._bytes) > 2:
            self._bytes = np.empty(size, np.uint8)
        entries = torch.from_numpy(self._bytes).view(self._layout.torch_dtype).view(-1, *self._layout.shape)[:count]
        return entries, self._bytes[:size].reshape(count, self._layout.bytes_per_entry)


def as_bytes(entries: Tensor) -> np.ndarray:
    """Entries [n, tokens, row], wherever they are, as uint8 [n, bytes]; without a copy if they are contiguous."""
    return entries.detach().cpu().contiguous().view(torch.uint8).flatten(1).numpy()
