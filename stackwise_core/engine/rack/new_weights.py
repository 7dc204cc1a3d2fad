"""Normal random numbers for new weights, drawn by several threads; however many these are, the bits are the same.

A tensor is drawn in slices. Each has a generator of its own, NumPy's Philox, whose key is the tensor's seed and the
slice's number, so that it makes no difference who draws which slice, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLICE = 1 << 20
"""Numbers of a slice."""


class Normal(NamedTuple):
    """A tensor to fill with independent numbers, normal around zero."""

    tensor: Tensor
    std: float
    seed: int
    """Not negative, below 2^64. Another tensor's is another."""


@torch.no_grad()
def fill(wanted: Sequence[Normal]) -> None:
    """Fill contiguous tensors in fp32 on the CPU, by as many threads as torch computes with."""
    slices = [
        (flat[begin : begin + SLICE], each, begin // SLICE)
        for each in wanted
        for flat in [each.tensor.detach().view(-1).numpy()]
        for begin in range(0, flat.size, SLICE)
    ]
    threads = min(torch.get_num_threads(), len(slices))
    if threads == 1:
        for part in slices:
            _draw(*part)
    elif slices:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: _draw(*part), slices))


def _draw(into: np.ndarray, wanted: Normal, number: int) -> None:
    """Draw a slice; NumPy lets other threads compute meanwhile."""
    generator = np.random.Generator(np.random.Philox(key=np.array([wanted.seed, number], np.uint64)))
    generator.standard_normal(dtype=np.float32, out=into)
    into *= wanted.std
