"""The weights of a Hugging Face checkpoint, read tensor by tensor, under our names and in fp32."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stackwise_core.config.source_checkpoint import EMBEDDING, HEAD, NORM, NUMBERS, SourceCheckpoint, tensor_shapes
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.number_range import FINITE
from stackwise_core.tensor_file import BLOCK, DTYPES, DamagedTensors, StoredTensor, read_header

_NUMBERS = [DTYPES[name] for name in NUMBERS]


class PretrainedWeights:
    """See ``Weights`` in ``runs/source.py``.

    Such files have no checksums of their own. So their sizes are compared with config.json, and every number must be
    finite.
    """

    has_own_ends = False

    def __init__(self, source: SourceCheckpoint) -> None:
        self.source = source
        self._header = cache(_read_header)
        self._shapes = tensor_shapes(source.rack, len(source.blocks))

    def check(self, spec: RackSpec) -> None:
        """See that the headers are still those that the configuration was checked with."""
        for name in self.source.files:
            self._stored(name)

    def stack(self, blocks: range) -> dict[str, Tensor]:
        """Tensors of a stack made of these blocks; its exit norm is the checkpoint's one norm."""
        tensors = {NORM: self._read(NORM)}
        for place, block in enumerate(blocks):
            prefix = f"layers.{block}."
            for name in self.source.files:
                if name.startswith(prefix) and not name.endswith("inv_freq"):
                    tensors[f"layers.{place}.{name.removeprefix(prefix)}"] = self._read(name)
        return tensors

    def ends(self, spec: RackSpec, block: int | None) -> dict[str, Tensor]:
        """Embedding and untied head, with the rack's rows."""
        tensors = {EMBEDDING: self._rows(EMBEDDING, spec.vocab_size)}
        if self.source.rack["tie_embeddings"] and HEAD in self.source.files:
            self._refuse_another_head(tensors[EMBEDDING])
        if not spec.tie_embeddings:
            tensors[HEAD] = self._rows(HEAD, spec.vocab_size)
        return tensors

    def embedding(self, spec: RackSpec) -> dict[str, Tensor]:
        """The embedding; an untied head is the checkpoint's own, or the embedding where it has none."""
        tensors = {EMBEDDING: self._rows(EMBEDDING, spec.vocab_size)}
        if not spec.tie_embeddings:
            own = not self.source.rack["tie_embeddings"] and HEAD in self.source.files
            tensors[HEAD] = self._rows(HEAD, spec.vocab_size) if own else tensors[EMBEDDING]
        return tensors

    def _rows(self, name: str, wanted: int) -> Tensor:
        """Return rows [wanted, d_model] of an embedding or a head: the checkpoint's, then the mean of its tokens'."""
        rows = torch.empty(wanted, self._stored(name).shape[1])
        self._fill(name, rows[: self.source.rows])
        rows[self.source.rows :] = rows[: self.source.tokens].mean(dim=0)
        FINITE.check(rows, f"{self._path(name)}: the mean of {self.source.files[name][1]}, for tokens that it lacks,")
        return rows

    def _refuse_another_head(self, embedding: Tensor) -> None:
        """Some tied checkpoints have the head as well; one that differs would be another model."""
        theirs = embedding[: self.source.rows]
        head = torch.empty_like(theirs)
        self._fill(HEAD, head)
        if not torch.equal(head, theirs):
            raise StackwiseError(
                f"{self.source.path}: {HEAD} isn't the embedding, though config.json ties them (tie_word_embeddings)"
            )

    def _read(self, name: str) -> Tensor:
        into = torch.empty(self._stored(name).shape)
        self._fill(name, into)
        return into

    def _fill(self, name: str, into: Tensor) -> None:
        """Read the beginning of a tensor, as many numbers as there is room for, a block at a time."""
        path, stored, flat = self._path(name), self._stored(name), into.view(-1)
        at_once = BLOCK // stored.dtype.itemsize
        block = torch.empty(at_once, dtype=stored.dtype)
        with path.open("rb", buffering=0) as file:
            for first in range(0, flat.numel(), at_once):
                part = block[: flat.numel() - first]
                offset = stored.begin + first * stored.dtype.itemsize
                if os.preadv(file.fileno(), [part.view(torch.uint8).numpy().data], offset) != part.nbytes:
                    raise StackwiseError(f"{path}: cut short while it was read")
                if not part.isfinite().all():
                    raise StackwiseError(f"{path}: {self.source.files[name][1]} has numbers that aren't finite")
                flat[first : first + part.numel()] = part

    def _path(self, name: str) -> Path:
        return self.source.path / self.source.files[name][0]

    def _stored(self, name: str) -> StoredTensor:
        path, theirs = self._path(name), self.source.files[name][1]
        stored = self._header(path).get(theirs)
        if stored is None:
            raise StackwiseError(f"{path}: {theirs} isn't there any more; was the file changed?")
        if name in self._shapes and (stored.shape != self._shapes[name] or stored.dtype not in _NUMBERS):
            raise StackwiseError(f"{path}: {theirs} has another shape now or other numbers; was the file changed?")
        return stored


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb", buffering=0) as file:
            return read_header(file, path)
    except (OSError, DamagedTensors) as error:
        raise StackwiseError(f"not a safetensors file: {error}") from None
