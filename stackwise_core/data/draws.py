"""Draws: which tokens of a sample are masked, as a pure function of (seed, sample, draw number).

Philox is a counter-based generator (Salmon et al. 2011): the key is (seed, draw number), and the counter starts at the
sample's own place. So a draw is the same in whatever batch, order, process or resumed run it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.data.sequences import Rows, Split
from stackwise_core.interfaces.mask_schedule import MaskSchedule


class Stream(IntEnum):
    """What randomness is for; streams share no number."""

    TRAINING = 0
    EVALUATION = 1
    EVALUATION_COUNTS = 2
    ORDER = 3


def generator(seed: int, number: int, stream: Stream, item: int = 0) -> np.random.Generator:
    """The generator of one item (a sample, say) under (seed, number) in a stream."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, stream, item]))


@frozen
class Draws:
    """A batch of corrupted sequences, on the CPU. B sequences of T tokens."""

    samples: np.ndarray
    """int64 [B], sample ids."""
    inputs: Tensor
    """int64 [B, T], the mask token at masked positions: what the network sees."""
    segments: Tensor
    """int32 [B, T], 0 at padding and special tokens, else the document's number within the row."""
    progress: Tensor
    """float64 [B], where the schedule was read."""
    fraction: Tensor
    """float64 [B], the mask fraction there."""
    masked: Tensor
    """int64 [N], positions of the masked tokens in the flattened [B x T]."""
    targets: Tensor
    """int64 [N], the true ids at these positions."""
    scored: int
    """How many tokens of the batch could have been masked."""

    @property
    def rows(self) -> Tensor:
        """int64 [N], the sequence within the batch that each masked token belongs to."""
        return self.masked // self.inputs.shape[1]


def corrupt(
    rows: Rows, samples: np.ndarray, mask: np.ndarray, mask_id: int, progress: Tensor, fraction: Tensor
) -> Draws:
    """Put the mask token where ``mask`` bool [B, T] says so."""
    masked = np.flatnonzero(mask)
    return Draws(
        samples=samples,
        inputs=torch.from_numpy(np.where(mask, mask_id, rows.tokens).astype(np.int64)),
        segments=torch.from_numpy(rows.segments),
        progress=progress,
        fraction=fraction,
        masked=torch.from_numpy(masked),
        targets=torch.from_numpy(rows.tokens.reshape(-1)[masked].astype(np.int64)),
        scored=int(rows.scorable.sum()),
    )


@frozen
class Drawer:
    """Makes a phase's draws of a split."""

    split: Split
    schedule: MaskSchedule
    seed: int
    mask_id: int
    progress: tuple[float, float]
    """The stretch of progress that draws are taken from; equal ends fix it."""
    at_least_one: bool
    """Whether a sequence that chance leaves unmasked gets one masked token. Under the NELBO weight it must not: the
    empty mask has its own probability there, and a forced token would be weighed by up to 1/fraction."""

    def draw(self, samples: Iterable[int], number: int) -> Draws:
        """The draws of these samples with this number."""
        samples = np.asarray(list(samples), dtype=np.int64)
        rows = self.split.rows(samples)
        generators = [generator(self.seed, number, Stream.TRAINING, int(sample)) for sample in samples]
        low, high = self.progress
        uniform = torch.tensor([rng.random() for rng in generators], dtype=torch.float64)
        progress = low + uniform * (high - low)
        fraction = self.schedule.fraction(progress)
        mask = np.stack(
            [
                self._place(tokens, scorable, float(share), rng)
                for tokens, scorable, share, rng in zip(rows.tokens, rows.scorable, fraction, generators, strict=True)
            ]
        )
        return corrupt(rows, samples, mask, self.mask_id, progress, fraction)

    def _place(self, tokens: np.ndarray, scorable: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
        mask = np.asarray(self.schedule.place(tokens, scorable, fraction, rng)) & scorable
        if self.at_least_one and not mask.any():
            mask[rng.choice(np.flatnonzero(scorable))] = True
        return mask
