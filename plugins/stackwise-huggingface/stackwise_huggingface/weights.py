"""The weights of a checkpoint, read tensor by tensor in fp32."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.engine.runs.tensor_file import BLOCK, DTYPES, DamagedTensors, StoredTensor, read_header
from stackwise_core.errors import StackwiseError
from stackwise_huggingface.checkpoint import NUMBERS

_NUMBERS = [DTYPES[name] for name in NUMBERS]


Header = Mapping[str, StoredTensor]
"""Place of each tensor in a safetensors file, by name, as its header has them."""


def read_tensor(file: Path, name: str, into: Tensor, header: Header) -> None:
    """Read a tensor in fp32, a block at a time. Such files have no checksums: every number must be finite.

    Args:
        file: a safetensors file.
        name: the tensor's name there.

    Raises:
        StackwiseError: it isn't as it was when it was described, or has numbers that aren't finite.
    """
    stored, flat = header.get(name), into.view(-1)
    if stored is None:
        raise StackwiseError(f"{file}: {name} isn't there any more; was the file changed?")
    if stored.shape != tuple(into.shape) or stored.dtype not in _NUMBERS:
        raise StackwiseError(f"{file}: {name} has another shape now or other numbers; was the file changed?")
    at_once = BLOCK // stored.dtype.itemsize
    block = torch.empty(at_once, dtype=stored.dtype)
    with file.open("rb", buffering=0) as opened:
        for first in range(0, flat.numel(), at_once):
            part = block[: flat.numel() - first]
            offset = stored.begin + first * stored.dtype.itemsize
            if os.preadv(opened.fileno(), [part.view(torch.uint8).numpy().data], offset) != part.nbytes:
                raise StackwiseError(f"{file}: cut short while it was read")
            if not part.isfinite().all():
                raise StackwiseError(f"{file}: {name} has numbers that aren't finite")
            flat[first : first + part.numel()] = part


def header_of(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        StackwiseError: it isn't one.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return read_header(file, path)
    except (OSError, DamagedTensors) as error:
        raise StackwiseError(f"not a safetensors file: {error}") from None
