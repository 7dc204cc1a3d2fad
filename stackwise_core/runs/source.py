"""The rack of another run, as the beginning of this one: which of its blocks become which stack."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import evolve, frozen
from torch import Tensor

from stackwise_core.config.source_run import PLAN, SourceRun
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.runs.directory import RunDirectory, embedding_file, head_file
from stackwise_core.runs.shapes import check_shapes


@frozen
class Source:
    """A finished run's blocks, dealt to the stacks of a rack that has as many or more."""

    run: SourceRun
    stacks: dict[int, range]
    """By stack of this rack, the source's blocks that it is made of."""
    exits: frozenset[int]
    """Stacks of this rack whose exit the source was read at."""

    @classmethod
    def of(cls, run: SourceRun, spec: RackSpec, grows: Literal["up", "down"]) -> Source:
        """Match blocks in order: the source's at the bottom of a rack that grows up, at the top of one that grows down.

        Raises:
            UsageError: it has too many blocks, or ends within one of this rack's stacks.
        """
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
        where, rack = f'rack.init_from = "{self.run.path}"', self.run.rack
        if self.run.tokenizer != tokenizer:
            raise UsageError(
                f"{where} was trained with another tokenizer than data.tokenizer and data.mask_token name: its "
                f"vocabulary has {rack.get('vocab_size')} tokens, and this one {spec.vocab_size}. Name its own."
            )
        if rack.get("ends", "shared") == "per_stack" and spec.ends == "shared":
            raise UsageError(f"{where} has an embedding and a head for each stack, and this rack has one for all.")
        encoding = rack.get("time_encoding")
        same_steps = encoding != "learned" or len(rack.get("time_fractions", ())) == len(spec.time_fractions)
        if encoding is not None and (encoding != spec.time_encoding or not same_steps):
            raise UsageError(
                f"{where} was trained with another time input. Set training.time, time_encoding and time_steps to its."
            )

    def check_files(self, spec: RackSpec) -> None:
        """Refuse a source whose files can be seen to be wrong before they are read; its weights are when they are.

        Raises:
            StackwiseError: the plan is damaged, or a file with weights is missing, cut short or of another rack.
        """
        source, rack = RunDirectory(Path(self.run.path)), self.run.rack
        source.manifest.checked(PLAN)
        theirs = evolve(
            spec,
            blocks=self.run.blocks,
            ends=rack.get("ends", "shared"),
            time_encoding=rack.get("time_encoding"),
            time_fractions=tuple(rack.get("time_fractions", ())),
        )
        check_shapes(source, theirs)

    def copy_into(self, directory: RunDirectory, spec: RackSpec) -> dict[int | None, dict[str, Tensor]]:
        """Write the masters of the given stacks into a run's directory.

        Returns:
            Embedding and head by the stack that they belong to, None where all stacks share them.

        Raises:
            StackwiseError: a file is missing or damaged.
        """
        source = RunDirectory(Path(self.run.path))
        for stack, blocks in self.stacks.items():
            directory.write_stack(stack, self._stack(source, blocks))
        owners = range(spec.stacks) if spec.ends == "per_stack" else (None,)
        own = self.run.rack.get("ends", "shared") == "per_stack"
        ends: dict[int | None, dict[str, Tensor]] = {}
        for owner in owners:
            if own and owner is not None and owner not in self.stacks:
                continue
            theirs = self._source_stack(self.stacks[owner][-1]) if own and owner is not None else None
            tensors = source.read_tensors(embedding_file(theirs))
            if not spec.tie_embeddings:
                tensors |= source.read_tensors(head_file(theirs))
            ends[owner] = tensors
        return ends

    def _source_stack(self, block: int) -> int:
        """The source's stack that a block of it belongs to."""
        return next(stack for stack in range(len(self.run.blocks)) if block < sum(self.run.blocks[: stack + 1]))

    def _stack(self, source: RunDirectory, blocks: range) -> dict[str, Tensor]:
        """Tensors of a stack made of these blocks of the source, read out through the norm of the last one's stack."""
        owners = [self._source_stack(block) for block in blocks]
        theirs = {owner: source.read_stack(owner) for owner in dict.fromkeys(owners)}
        tensors = {"norm.weight": theirs[owners[-1]]["norm.weight"]}
        for place, (block, owner) in enumerate(zip(blocks, owners, strict=True)):
            prefix = f"layers.{block - sum(self.run.blocks[:owner])}."
            tensors |= {
                f"layers.{place}.{name.removeprefix(prefix)}": tensor
                for name, tensor in theirs[owner].items()
                if name.startswith(prefix)
            }
        return tensors
