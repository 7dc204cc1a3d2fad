"""Normal random numbers for new weights, drawn by several threads; however many these are, the bits are the same.

A tensor is drawn in slices. Each has a generator of its own, whose seed follows from the tensor's and the slice's
number, so that it makes no difference who draws which slice, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLICE = 1 << 24
"""Numbers of a slice: few enough for several threads, and so many that hardly two slices of a rack have the same seed,
of which torch's generator keeps 32 bits (4,200 slices of 70B: a chance of 0.2 %)."""


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
        (part, each, number)
        for each in wanted
        for number, part in enumerate(each.tensor.detach().view(-1).split(SLICE))
    ]
    threads = min(torch.get_num_threads(), len(slices))
    if threads == 1:
        for part in slices:
            _draw(*part)
    elif slices:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: _draw(*part), slices))


def _draw(into: Tensor, wanted: Normal, number: int) -> None:
    """Draw a slice; torch lets other threads compute meanwhile."""
    (seed,) = np.random.SeedSequence([wanted.seed, number]).generate_state(1)
    into.normal_(std=wanted.std, generator=torch.Generator().manual_seed(int(seed)))
