"""The weights of a checkpoint of another program, asked of its format tensor by tensor, in fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stackwise_core.config.source_checkpoint import SourceCheckpoint
from stackwise_core.engine.rack.number_range import FINITE
from stackwise_core.errors import StackwiseError, is_out_of_memory
from stackwise_core.interfaces.checkpoint_format import EMBEDDING, HEAD, NORM, block_shapes
from stackwise_core.interfaces.component import origin
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.registry.foreign_code import foreign_code


class CheckpointWeights:
    """See ``Weights`` in ``engine/weights/source.py``.

    Such files may have no checksums. So every number must be finite; what a format leaves unfilled isn't.
    """

    has_own_ends = False

    def __init__(self, source: SourceCheckpoint) -> None:
        self.source, self._shapes = source, source.described.shapes

    def check(self, spec: RackSpec) -> None:
        """Do nothing: the format has just checked the files."""

    def stack(self, blocks: range) -> dict[str, Tensor]:
        """Return tensors of a stack made of these blocks; its exit norm is the checkpoint's one norm."""
        tensors = {NORM: self._read(NORM)}
        for place, block in enumerate(blocks):
            for name in block_shapes(self.source.described):
                tensors[f"layers.{place}.{name}"] = self._read(f"layers.{block}.{name}")
        return tensors

    def ends(self, spec: RackSpec, block: int | None) -> dict[str, Tensor]:
        """Embedding and untied head, with the rack's rows."""
        tensors = {EMBEDDING: self._rows(EMBEDDING, spec.vocab_size)}
        if self.source.described.tie_embeddings and self.source.described.has_head_tensor:
            self._refuse_another_head(tensors[EMBEDDING])
        if not spec.tie_embeddings:
            tensors[HEAD] = self._rows(HEAD, spec.vocab_size)
        return tensors

    def embedding(self, spec: RackSpec) -> dict[str, Tensor]:
        """Return the embedding; an untied head is the checkpoint's own, or the embedding where it has none."""
        tensors = {EMBEDDING: self._rows(EMBEDDING, spec.vocab_size)}
        if not spec.tie_embeddings:
            own = not self.source.described.tie_embeddings and self.source.described.has_head_tensor
            tensors[HEAD] = self._rows(HEAD, spec.vocab_size) if own else tensors[EMBEDDING]
        return tensors

    def _rows(self, name: str, wanted: int) -> Tensor:
        """Return rows [wanted, d_model] of an embedding or a head: the checkpoint's, then the mean of its tokens'."""
        rows = torch.full((wanted, self.source.described.d_model), math.nan)
        self._fill(name, rows[: self.source.rows])
        rows[self.source.rows :] = rows[: self.source.tokens].mean(dim=0)
        FINITE.check(rows, f"{self.source.path}: the mean of {name}, for tokens that it lacks,")
        return rows

    def _refuse_another_head(self, embedding: Tensor) -> None:
        """Some tied checkpoints have the head as well; one that differs would be another model."""
        theirs = embedding[: self.source.rows]
        head = torch.full_like(theirs, math.nan)
        self._fill(HEAD, head)
        if not torch.equal(head, theirs):
            raise StackwiseError(f"{self.source.path}: {HEAD} isn't the embedding, though the two are tied there")

    def _read(self, name: str) -> Tensor:
        into = torch.full(self._shapes[name], math.nan)
        self._fill(name, into)
        return into

    def _fill(self, name: str, into: Tensor) -> None:
        """Have the format read a tensor.

        Raises:
            StackwiseError: it can't, or there are numbers that aren't finite.
        """
        format = self.source.format
        try:
            with foreign_code():
                format.read(self.source.path, self.source.described, name, into)
        except (StackwiseError, OSError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error!s:.300}"
            raise StackwiseError(f"{self.source.path}: {name} can't be read by {origin(format)}: {reason}") from error
        FINITE.check(into, f"{self.source.path}: {name}")
