"""A rack as a directory that transformers loads without any code but its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.config.tokenizer_json import MASK, PAD
from stackwise_core.interfaces.checkpoint_format import HEAD, ExportedRack, ExportedTokenizer, Written
from stackwise_core.system.files import publish_text
from stackwise_huggingface.checkpoint import CONFIG
from stackwise_huggingface.model_card import model_card
from stackwise_huggingface.model_config import NUMBERS, Target, model_config, target_of
from stackwise_huggingface.options import HuggingFaceOptions
from stackwise_huggingface.sharded_files import write_sharded
from stackwise_huggingface.tokenizer_files import tokenizer_files


def write_model(
    options: HuggingFaceOptions,
    rack: ExportedRack,
    tensors: Iterator[tuple[str, Tensor]],
    tokenizer: ExportedTokenizer,
    directory: Path,
) -> Written:
    """Write weights, config.json, the tokenizer's files and a README.md, with one tensor in memory at a time."""
    target, number = target_of(rack.spec, options.architecture), options.dtype
    shapes = {_theirs(name): shape for name, shape in rack.shapes.items()}
    dtype = getattr(torch, NUMBERS[number])
    write_sharded(directory, shapes, map(_renamed, tensors), dtype, options.max_shard_size)
    files = tokenizer_files(tokenizer, rack.spec.seq_len)
    mask, pad = (tokenizer.special_ids[name] for name in (MASK, PAD))
    files[CONFIG] = model_config(rack.spec, target, number, mask, pad)
    for name, content in files.items():
        publish_text(directory / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    publish_text(directory / "README.md", model_card(rack, target))
    return Written(
        title=target.model_class,
        numbers=number,
        facts={
            "architecture": target.model_class,
            "transformers": target.needs,
            "dtype": number,
        },
        notes=tuple(_needs(target)),
    )


def _theirs(name: str) -> str:
    """Return a tensor's name in transformers."""
    return name if name == HEAD else f"model.{name}"


def _renamed(named: tuple[str, Tensor]) -> tuple[str, Tensor]:
    return _theirs(named[0]), named[1]  # `map` holds no tensor while the next one is read


def _needs(target: Target) -> Iterator[str]:
    yield f"It needs transformers {target.needs} or newer."
    if target.model_type == "llama" and target.needs.startswith("5"):
        yield "Older versions load it without an error, and run it causally: its numbers are then wrong."
