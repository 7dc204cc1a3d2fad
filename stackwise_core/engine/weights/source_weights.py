"""The weights of a run that another one starts from, each file compared with its checksum."""

from __future__ import annotations

from attrs import evolve, frozen
from torch import Tensor

from stackwise_core.config.source_run import SourceRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.shapes import check_shapes
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import PLAN, embedding_file, head_file


@frozen
class RunWeights:
    """Reader of a run's weights: the ``Weights`` of ``engine/weights/source.py``."""

    run: SourceRun
    directory: RunDirectory

    @property
    def has_own_ends(self) -> bool:
        """Whether each stack has an embedding and a head of its own."""
        return self.run.plan.rack.spec.ends == "per_stack"

    def check(self, spec: RackSpec) -> None:
        """Compare the plan with its checksum, and the shapes in the other files' headers with it."""
        self.directory.manifest.checked(PLAN)
        # Rows of the embedding are this rack's: check_ends has compared them where they matter.
        check_shapes(self.directory, evolve(self.run.plan.rack.spec, vocab_size=spec.vocab_size))

    def stack(self, blocks: range) -> dict[str, Tensor]:
        """Return the tensors of a stack of these blocks, with the exit norm of the last block's stack."""
        owners = [self._owner(block) for block in blocks]
        theirs = {owner: self.directory.read_stack(owner) for owner in dict.fromkeys(owners)}
        tensors = {"norm.weight": theirs[owners[-1]]["norm.weight"]}
        for place, (block, owner) in enumerate(zip(blocks, owners, strict=True)):
            prefix = f"layers.{block - sum(self.run.blocks[:owner])}."
            tensors |= {
                f"layers.{place}.{name.removeprefix(prefix)}": tensor
                for name, tensor in theirs[owner].items()
                if name.startswith(prefix)
            }
        return tensors

    def ends(self, spec: RackSpec, block: int | None) -> dict[str, Tensor]:
        """Return embedding and untied head: those that all stacks share, or those of the stack with a block."""
        owner = None if block is None else self._owner(block)
        tensors = self.directory.read_tensors(embedding_file(owner))
        if not spec.tie_embeddings:
            tensors |= self.directory.read_tensors(head_file(owner))
        return tensors

    def embedding(self, spec: RackSpec) -> dict[str, Tensor]:
        """Return the token embedding; an untied head is the run's own, or the embedding where that is its head."""
        rows = self.directory.read_tensors(embedding_file(None))["embed_tokens.weight"]
        if spec.tie_embeddings:
            return {"embed_tokens.weight": rows}
        own = {} if self.run.plan.rack.spec.tie_embeddings else self.directory.read_tensors(head_file(None))
        return {"embed_tokens.weight": rows, "lm_head.weight": own.get("lm_head.weight", rows)}

    def _owner(self, block: int) -> int:
        """Return the run's stack that a block of it belongs to."""
        return next(stack for stack in range(len(self.run.blocks)) if block < sum(self.run.blocks[: stack + 1]))
