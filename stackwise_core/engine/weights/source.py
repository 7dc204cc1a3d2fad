"""The source of a rack: a run or a checkpoint, whose blocks fill the rack's stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from attrs import frozen
from torch import Tensor

from stackwise_core.config.source_checkpoint import SourceCheckpoint
from stackwise_core.config.source_run import SourceRun
from stackwise_core.config.tokenizer_json import MASK
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.checkpoint_weights import CheckpointWeights
from stackwise_core.engine.weights.source_weights import RunWeights
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec


class Weights(Protocol):
    """Reader of a source's weights, in full precision, by our names."""

    @property
    def has_own_ends(self) -> bool:
        """Whether each stack has an embedding and a head of its own."""

    def check(self, spec: RackSpec) -> None:
        """Refuse files that are obviously wrong. Weights are checked when they are read.

        Raises:
            StackwiseError: a file is missing, cut short, damaged, or of another rack.
        """

    def stack(self, blocks: range) -> dict[str, Tensor]:
        """Return the tensors of a stack of these blocks, with the exit norm of the last block's stack."""

    def ends(self, spec: RackSpec, block: int | None) -> dict[str, Tensor]:
        """Return embedding and untied head of a rack: those that all stacks share, or those of a block's stack."""

    def embedding(self, spec: RackSpec) -> dict[str, Tensor]:
        """Return the token embedding, and an untied head: the source's, or a copy of the embedding if it has none."""


@frozen
class Source:
    """A source's blocks, divided among the stacks of a rack that has as many or more."""

    run: SourceRun | SourceCheckpoint
    stacks: dict[int, range]
    """Blocks of the source that each stack of this rack is made of."""
    exits: frozenset[int]
    """Stacks of this rack whose exit the source was read at."""

    @classmethod
    def of(
        cls,
        run: SourceRun | SourceCheckpoint,
        spec: RackSpec,
        grows: Literal["up", "down"],
        init: Literal["all", "embedding"] = "all",
    ) -> Source:
        """Match blocks in order: the source's at the bottom of a rack that grows up, at the top of one that grows down.

        Args:
            init: all of it, or its token embedding and none of its blocks.

        Raises:
            UsageError: it has too many blocks, or ends within one of this rack's stacks.
        """
        if init == "embedding":
            return cls(run, {}, frozenset())
        blocks, wanted = sum(run.blocks), sum(spec.blocks)
        if blocks > wanted:
            raise UsageError(
                f'rack.init_from = "{run.path}" has {blocks} blocks, and this rack {wanted}. '
                "Raise rack.stacks or rack.blocks_per_stack."
            )
        first = wanted - blocks if grows == "down" else 0
        stacks, ends, at = {}, {}, 0
        for stack, size in enumerate(spec.blocks):
            begin, end = at - first, at + size - first
            at += size
            if begin >= 0 and end <= blocks:
                stacks[stack], ends[end] = range(begin, end), stack
            elif begin < blocks and end > 0:
                raise UsageError(
                    f'rack.init_from = "{run.path}" has {blocks} blocks, which end within stack {stack} of this rack. '
                    "Choose rack.blocks_per_stack so that they fill whole stacks."
                )
        last_blocks = [sum(run.blocks[: stack + 1]) for stack in run.exits]
        return cls(run, stacks, frozenset(ends[block] for block in last_blocks if block in ends))

    def check_ends(self, spec: RackSpec, tokenizer: str) -> None:
        """Refuse a source whose embedding or head isn't for this rack.

        Raises:
            UsageError: another tokenizer, ends of its own for each stack, or a time embedding that doesn't fit.
        """
        where = f'rack.init_from = "{self.run.path}"'
        if isinstance(self.run, SourceCheckpoint):
            if self.run.rows > spec.vocab_size:
                raise UsageError(
                    f"{where} has {self.run.rows} rows of embedding, and this rack {spec.vocab_size}. Leave "
                    "rack.vocab_size out, and name its own data.tokenizer."
                )
            return
        theirs = self.run.plan.rack.spec
        if self.run.tokenizer != tokenizer:
            raise UsageError(
                f"{where} was trained with another tokenizer than data.tokenizer, data.mask_token and "
                f"data.special_ids name: its vocabulary has {theirs.vocab_size} tokens, and this one "
                f"{spec.vocab_size}. Name its own."
            )
        if theirs.vocab_size != spec.vocab_size:
            raise UsageError(
                f"{where} has {theirs.vocab_size} rows of embedding, and this rack {spec.vocab_size}. Leave "
                "rack.vocab_size out."
            )
        own = theirs.ends == "per_stack"
        if own and (spec.ends == "shared" or not self.stacks):
            raise UsageError(f"{where} has an embedding and a head for each stack, and this rack has one for all.")
        encoding = theirs.time_encoding if self.stacks else None
        same_steps = encoding != "learned" or len(theirs.time_fractions) == len(spec.time_fractions)
        if encoding is not None and (encoding != spec.time_encoding or not same_steps):
            raise UsageError(
                f"{where} was trained with another time input. Set training.time, time_encoding and time_steps to its."
            )

    def check_files(self, spec: RackSpec) -> None:
        """Refuse a source whose files are obviously wrong. Weights are checked when they are read.

        Raises:
            StackwiseError: the plan is damaged, or a file with weights is missing, cut short or of another rack.
        """
        self._weights.check(spec)

    def notes(self, spec: RackSpec, mask: int) -> list[str]:
        """Return notes for the user about a source's conversion.

        Args:
            mask: the mask token's id.
        """
        if not isinstance(self.run, SourceCheckpoint):
            return []
        said, trained = [], self.run.rack["attention"]
        if self.stacks and trained != spec.attention:
            said.append(
                f"{self.run.path} was trained with {trained} attention, and goes on with {spec.attention}: until its "
                "blocks have adapted, it is worth little."
            )
        wordless, new = self.run.rows - self.run.tokens, spec.vocab_size - self.run.rows
        if wordless:
            said.append(f"The {wordless} rows of its embedding that stand for no token of its tokenizer are kept.")
        if new > 0:
            said.append(f"Tokens that it doesn't have ({new}) begin as the mean of all others.")
        if MASK not in self.run.special_ids and self.run.tokens <= mask < self.run.rows:
            said.append(f"No file of it names a mask token: it is {mask}, the first of those rows.")
        if self.run.renumbered:
            token, (written, id_) = next(iter(self.run.renumbered.items()))
            said.append(
                f"{self.run.described.tokenizer} gives {token} the id {written}, and the tokenizers library {id_}, as "
                "it numbers them without gaps: that counts."
            )
        said += self.run.described.notes
        longest = self.run.described.seq_len
        if self.stacks and longest is not None and spec.seq_len > longest:
            said.append(f"It was made for {longest} positions, and data.seq_len is {spec.seq_len}.")
        return said

    def copy_into(self, directory: RunDirectory, spec: RackSpec) -> dict[int | None, dict[str, Tensor]]:
        """Write the masters of the given stacks into a run's directory, one after the other.

        Returns:
            Embedding and head by the stack that they belong to, None where all stacks share them.

        Raises:
            StackwiseError: a file is missing or damaged, or holds numbers that aren't finite.
        """
        weights = self._weights
        owners = range(spec.stacks) if spec.ends == "per_stack" else (None,)
        if not self.stacks:
            return dict.fromkeys(owners, weights.embedding(spec))
        for stack, blocks in self.stacks.items():
            directory.write_stack(stack, weights.stack(blocks))
        ends: dict[int | None, dict[str, Tensor]] = {}
        for owner in owners:
            if not weights.has_own_ends or owner is None:
                ends[owner] = weights.ends(spec, None)
            elif owner in self.stacks:
                ends[owner] = weights.ends(spec, self.stacks[owner][-1])
        return ends

    @property
    def _weights(self) -> Weights:
        if isinstance(self.run, SourceCheckpoint):
            return CheckpointWeights(self.run)
        return RunWeights(self.run, RunDirectory(Path(self.run.path)))
