"""The source of a rack: a run, or the checkpoint of another program."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from stackwise_core.config.source_formats import format_of
from stackwise_core.config.source_run import SourceRun, read_source_run
from stackwise_core.config.source_vocabulary import BYTES, vocabulary_of
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.checkpoint_format import Checkpoint, CheckpointFormat, RefusedCheckpoint
from stackwise_core.interfaces.component import origin
from stackwise_core.registry import Registry
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.registry.working_directory import kept_working_directory
from stackwise_core.run_files.names import PLAN
from stackwise_core.words import shown

_SHAPE = ("vocab_size", "d_model", "n_heads", "n_kv_heads", "d_ff", "tie_embeddings", "norm_eps", "rope_theta")


@frozen
class SourceCheckpoint:
    """A checkpoint in a format that some plugin knows."""

    path: Path
    format: CheckpointFormat
    described: Checkpoint
    tokens: int
    """Ids that its tokenizer has; the embedding may have rows beyond them."""
    renumbered: Mapping[str, tuple[int, int]]
    """Ids that its tokenizer.json gives added tokens, and those of the library where they are others."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """A stack a block."""
        return (1,) * self.described.blocks

    @property
    def exits(self) -> tuple[int, ...]:
        """The one stack that its head reads."""
        return (self.described.blocks - 1,)

    @property
    def rack(self) -> dict[str, Any]:
        """Its shape by the names of ``RackSpec``; ``attention`` is how it was trained."""
        return {name: getattr(self.described, name) for name in (*_SHAPE, "attention")}

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.described.vocab_size

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Its special tokens, as ``data.special_ids`` has them."""
        return self.described.special_ids

    @property
    def has_head(self) -> bool:
        """Whether there is an LM head: one of its own, or the embedding's transpose."""
        return self.described.tie_embeddings or self.described.has_head_tensor


def read_source(path: str | os.PathLike[str], registry: Registry) -> SourceRun | SourceCheckpoint:
    """Read the description of the run, or of the checkpoint, in a directory.

    Args:
        registry: whose formats are asked.

    Raises:
        UsageError: it is neither, or one that can't be started from.
        UnavailableError: it is a checkpoint whose plugin isn't there.
    """
    directory = Path(path)
    if os.path.isdir(directory) and not os.path.isfile(directory / PLAN):
        return read_checkpoint(directory, format_of(directory, registry))
    return read_source_run(path)


def read_checkpoint(directory: Path, format: CheckpointFormat) -> SourceCheckpoint:
    """Have a format describe a directory, and read the vocabulary; none of the weights.

    Raises:
        RefusedCheckpoint: it can't become a rack, or something is missing or damaged.
    """
    try:
        with foreign_code(), kept_working_directory():
            described = format.describe(directory)
        assert isinstance(described, Checkpoint), f"a Checkpoint was expected, and it gave {shown(described)}"
    except UsageError:
        raise
    except Exception as error:
        problem = f"{directory} can't be read by {origin(format)}: {type(error).__name__}: {error!s:.300}"
        raise RefusedCheckpoint([problem]) from error
    if described.tokenizer != BYTES:
        described = evolve(described, tokenizer=str(directory / described.tokenizer))
    vocabulary = vocabulary_of(described.tokenizer)
    if not 0 < vocabulary.size <= described.vocab_size:
        name = os.path.basename(described.tokenizer)
        has = f"{name} has ids up to {vocabulary.size - 1}, and the embedding {described.vocab_size} rows"
        raise RefusedCheckpoint([f"{directory}: {has}: they don't belong together"])
    return SourceCheckpoint(directory, format, described, vocabulary.size, vocabulary.renumbered)
