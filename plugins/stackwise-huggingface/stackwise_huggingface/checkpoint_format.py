"""The format: a directory with config.json, safetensors files and a tokenizer.json, as transformers has it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackwise_core.interfaces.checkpoint_format import (
    Checkpoint,
    CheckpointFormat,
    ExportedRack,
    ExportedTokenizer,
    Written,
)
from stackwise_huggingface.beside import ADAPTER_CONFIG
from stackwise_huggingface.checkpoint import CONFIG, StoredCheckpoint, read_checkpoint
from stackwise_huggingface.options import HuggingFaceOptions

if TYPE_CHECKING:
    from torch import Tensor


class HuggingFace(CheckpointFormat):
    """Models of the Llama family. Reading config.json and headers takes no torch."""

    options: HuggingFaceOptions
    holds_adapters = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._header = cache(_header)

    def recognises(self, directory: Path) -> bool:
        return any((directory / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))

    def describe(self, directory: Path) -> StoredCheckpoint:
        return read_checkpoint(directory)

    def read(self, directory: Path, checkpoint: Checkpoint, name: str, into: Tensor) -> None:
        from stackwise_huggingface.weights import read_tensor

        assert isinstance(checkpoint, StoredCheckpoint)
        file, theirs = checkpoint.stored[name]
        read_tensor(directory / file, theirs, into, self._header(directory / file))

    def refuses(self, rack: ExportedRack) -> str:
        if rack.spec.attention == "causal" and self.options.architecture == "eurobert":
            return (
                "--architecture eurobert: expected a bidirectional rack, and this one is causal: leave it out, or "
                "take llama"
            )
        return ""

    def write(
        self, rack: ExportedRack, tensors: Iterator[tuple[str, Tensor]], tokenizer: ExportedTokenizer, directory: Path
    ) -> Written:
        from stackwise_huggingface.writing import write_model

        return write_model(self.options, rack, tensors, tokenizer, directory)


def _header(file: Path) -> Any:
    from stackwise_huggingface.weights import header_of

    return header_of(file)
