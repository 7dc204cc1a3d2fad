"""A step's batches: draws, and what of them a training step reads, made on the host before the step needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.engine.process.transfer import Transfer, page_locked
from stackwise_core.engine.rack.attention_context import Documents


class BatchOnDevice(NamedTuple):
    """Tensors of a batch that a step computes with. B sequences of T tokens, N of which are predicted."""

    inputs: Tensor
    """int64 [B, T]"""
    fraction: Tensor
    """float64 [B]"""
    masked: Tensor
    """int64 [N], flat positions."""
    targets: Tensor
    """int64 [N]"""
    weights: Tensor
    """float64 [N], of each predicted token's loss."""


@frozen
class Batch:
    """The draws of one forward pass, with the weight of each predicted token and the documents of its rows."""

    draws: Draws
    documents: Documents
    host: BatchOnDevice
    """Its tensors on the host, page-locked for a CUDA device."""

    def on_device(self, transfer: Transfer) -> BatchOnDevice:
        """Return its tensors on the device."""
        return BatchOnDevice(*transfer(self.host))


@frozen
class StepBatches:
    """The batches of an optimizer step."""

    number: int
    """Number of the draws."""
    batches: tuple[Batch, ...]
    normaliser: float
    """Divisor of the weighted sum of all passes' losses."""

    @classmethod
    def of(cls, draws: Sequence[Draws], number: int, objective: PhaseLoss, device: torch.device) -> StepBatches:
        """Build from the draws of each forward pass."""
        predicted = [objective.predicted(each) for each in draws]
        batches = []
        for each, tokens in zip(draws, predicted, strict=True):
            tensors = each.inputs, each.fraction, each.masked, each.targets, objective.weights(tokens)
            host = BatchOnDevice(*(page_locked(tensor, device) for tensor in tensors))
            documents = Documents.of(each.segments).page_locked(device)
            batches.append(Batch(each, documents, host))
        return cls(number, tuple(batches), objective.normaliser(predicted))

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return sum(batch.draws.inputs.numel() for batch in self.batches)

    @property
    def masked_share(self) -> float:
        """Share of the tokens that could have been predicted which are."""
        scored = sum(batch.draws.scored for batch in self.batches)
        return sum(len(batch.draws.masked) for batch in self.batches) / scored
