"""Tensors that come one after the other, as safetensors files that transformers loads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.engine.rack.number_range import NumberRange
from stackwise_core.engine.runs.tensor_file import stream_tensors
from stackwise_core.system.files import publish, publish_text
from stackwise_huggingface.checkpoint import INDEX, WEIGHTS

Shapes = Mapping[str, tuple[int, ...]]


def write_sharded(
    directory: Path, shapes: Shapes, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype, largest: int
) -> list[str]:
    """Write tensors into one file, or into several with an index.

    Args:
        shapes: all of them, in the order in which they come.
        tensors: each with its name; one at a time is held.
        dtype: what they are written as.
        largest: most bytes of a file; a tensor that is larger has one of its own.

    Returns:
        The files' names.

    Raises:
        OSError: one can't be written.
        OutOfRange: there are numbers that ``dtype`` can't hold.
    """
    numbers = NumberRange.of(dtype, "Export it as fp32 or bf16.")

    def check(named: tuple[str, Tensor]) -> tuple[str, Tensor]:
        numbers.check(named[1], named[0])
        return named

    checked = map(check, tensors)
    shards = _shards(shapes, dtype.itemsize, largest)
    names = [f"model-{place:05}-of-{len(shards):05}.safetensors" for place in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):

        def fill(beside: Path, shard: Shapes = shard) -> None:
            stream_tensors(beside, shard, checked, dtype=dtype)

        publish(directory / name, fill)
    if len(shards) == 1:
        return names
    size = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": size}, "weight_map": where}
    publish_text(directory / INDEX, json.dumps(index, indent=2) + "\n")
    return [*names, INDEX]


def _shards(shapes: Shapes, itemsize: int, largest: int) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and held + size > largest:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += size
    return shards
