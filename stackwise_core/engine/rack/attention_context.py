"""Inputs of attention besides the hidden states: rotary positions, and which documents a batch's rows hold.

Nobody asks the device who sees whom, and no mask [B, 1, T, T] is made. The documents are found on the CPU, ahead if
you like; attention then runs over each of them by itself, one after the other in one packed sequence of B x T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.engine.process.transfer import page_locked

MASKED_UP_TO = 256
"""Tokens of a row up to which a CPU is faster with a mask, where more than one thread computes: a step over documents
takes 0.97 to 0.99 of one over single documents through a mask, document by document 1.02 to 1.07. With 1024 tokens it
is 1.02 and 0.78 (docs/log.md)."""
SHORTEST = 128
"""Tokens that ``PackedDocuments.longest`` is at least: the tile of a GPU's attention kernels."""
FLASH_CAPABILITY = (8, 0)
"""Least compute capability of torch's flash attention."""


class PackedDocuments(NamedTuple):
    """Documents of a batch's rows as attention takes them: token ranges of one packed sequence of B x T tokens.

    A token of segment 0 is a document of its own.
    """

    bounds: Tensor
    """int32 [S + 1], where each document begins in the packed sequence, and B x T."""
    order: Tensor | None
    """int32 [B x T], the flat position of each packed token; None where the batch is already in that order."""
    back: Tensor | None
    """int32 [B x T], the packed place of each flat position."""
    longest: int
    """Tokens that no document has more of. A power of two, so that compiled blocks meet few different ones."""
    flash: bool
    """Whether the device has torch's flash attention."""


class AttentionContext(NamedTuple):
    """Inputs of attention besides the hidden states, the same for every block of a batch."""

    cos: Tensor
    """[T, W]"""
    sin: Tensor
    documents: PackedDocuments | Tensor | None
    """Documents, or bool [B, 1, T, T], who sees whom; None where nothing is hidden but by causal order: each row is one
    document."""


@frozen(eq=False)
class Documents:
    """Documents of a batch's rows, on the CPU: found without the device, by whichever thread prepares the batch.

    B rows of T tokens, S documents. On the device they take 4 (S + 1) bytes, and 8 B T more where a token of segment 0
    lies within a document; nothing where each row is one document.
    """

    tokens: int
    """T."""
    bounds: Tensor | None = None
    """Beginnings of documents, as in ``PackedDocuments``; None where each row is one document."""
    order: Tensor | None = None
    back: Tensor | None = None
    longest: int = 0

    @classmethod
    def of(cls, segments: Tensor | np.ndarray) -> Documents:
        """Find the documents of rows, from segments int [B, T] (0: padding and special tokens, else the document).

        A token sees the tokens of its own document. A token of segment 0 is seen by none but itself, which keeps its
        softmax defined.
        """
        rows = np.asarray(segments.cpu() if isinstance(segments, Tensor) else segments)
        count, tokens = rows.shape
        if (rows == rows[:, :1]).all() and (rows[:, 0] > 0).all():
            return cls(tokens)
        # Documents are even; a token of its own is odd, and stays where it is unless its document goes on behind it.
        keys = np.where(rows > 0, 2 * rows, 2 * np.maximum.accumulate(rows, axis=1) + 1)
        within = np.argsort(keys, axis=1, kind="stable")
        keys = np.take_along_axis(keys, within, axis=1)
        begins = np.ones((count, tokens), dtype=bool)
        begins[:, 1:] = (keys[:, 1:] != keys[:, :-1]) | (keys[:, 1:] % 2 == 1)
        bounds = np.append(np.flatnonzero(begins), count * tokens).astype(np.int32)
        longest = max(SHORTEST, 1 << (int(np.diff(bounds).max()) - 1).bit_length())
        order = back = None
        if (np.diff(within, axis=1) != 1).any():
            places = (within + np.arange(count)[:, None] * tokens).reshape(-1)
            inverse = np.empty_like(places)
            inverse[places] = np.arange(places.size)
            order, back = (torch.from_numpy(each.astype(np.int32)) for each in (places, inverse))
        return cls(tokens, torch.from_numpy(bounds), order, back, longest)

    def page_locked(self, device: torch.device) -> Documents:
        """Return the same in memory from which a device reads by itself."""
        tensors = (self.bounds, self.order, self.back)
        bounds, order, back = (None if each is None else page_locked(each, device) for each in tensors)
        return Documents(self.tokens, bounds, order, back, self.longest)

    def mask(self, *, causal: bool) -> Tensor:
        """Return who sees whom, bool [B, 1, T, T], where rows have several documents."""
        assert self.bounds is not None
        lengths = self.bounds.diff()
        documents = torch.repeat_interleave(
            torch.arange(len(lengths)), lengths, output_size=int(self.bounds.numpy()[-1])
        )
        if self.back is not None:
            documents = documents[self.back]
        documents = documents.view(-1, self.tokens)
        mask = documents[:, :, None] == documents[:, None]
        return (mask.tril() if causal else mask)[:, None]

    def on(self, device: torch.device) -> PackedDocuments | None:
        """Return a copy on a device, made without waiting where the tensors here are page-locked.

        None where each row is one document.
        """
        if self.bounds is None:
            return None
        order, back = (None if each is None else each.to(device, non_blocking=True) for each in (self.order, self.back))
        bounds = self.bounds.to(device, non_blocking=True)
        flash = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
        return PackedDocuments(bounds, order, back, self.longest, flash)
