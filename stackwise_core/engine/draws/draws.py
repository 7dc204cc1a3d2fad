"""Draws: which tokens of a sample are masked or predicted, as a pure function of (seed, sample, draw number).

Philox is a counter-based generator (Salmon et al. 2011): the key is (seed, draw number), and the counter starts at the
sample's own place. So a draw is the same in whatever batch, order, process or resumed run it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.draws.schedule_checks import placed
from stackwise_core.engine.draws.sequences import Rows, Split


class Stream(IntEnum):
    """Purposes of randomness; streams share no number."""

    TRAINING = 0
    EVALUATION = 1
    EVALUATION_COUNTS = 2
    ORDER = 3
    VALIDATION = 4
    SAMPLING = 5


def generator(seed: int, number: int, stream: Stream, item: int = 0) -> np.random.Generator:
    """Return the generator of one item (a sample, say) under (seed, number) in a stream."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, stream, item]))


@frozen
class Draws:
    """A batch of corrupted sequences, on the CPU. B sequences of T tokens."""

    samples: np.ndarray
    """int64 [B], sample ids."""
    inputs: Tensor
    """int64 [B, T], the mask token at masked positions unless the objective has another there: what the network
    sees."""
    segments: Tensor
    """int32 [B, T], 0 at padding and special tokens, else the document's number within the row."""
    progress: Tensor
    """float64 [B], where the schedule was read."""
    fraction: Tensor
    """float64 [B], the mask fraction there, which a network with a time input is told."""
    masked: Tensor
    """int64 [N], positions in the flattened [B x T] at which a token is predicted: the masked ones, or without masks
    all whose next token belongs to the same document."""
    targets: Tensor
    """int64 [N], the ids to predict at these positions."""
    scored: int
    """Number of tokens of the batch that could have been predicted."""

    @property
    def rows(self) -> Tensor:
        """int64 [N], the sequence within the batch that each prediction belongs to."""
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
        scored=int(rows.predictable(causal=False).sum()),
    )


def shifted(rows: Rows, samples: np.ndarray) -> Draws:
    """Return draws that predict every token from those before it in its document.

    Causal language modelling trains on these.
    """
    predicted = np.flatnonzero(rows.predictable(causal=True))
    nothing = torch.zeros(len(samples), dtype=torch.float64)
    return Draws(
        samples=samples,
        inputs=torch.from_numpy(rows.tokens.astype(np.int64)),
        segments=torch.from_numpy(rows.segments),
        progress=nothing,
        fraction=nothing,
        masked=torch.from_numpy(predicted - 1),  # each from the position before it
        targets=torch.from_numpy(rows.tokens.reshape(-1)[predicted].astype(np.int64)),
        scored=len(predicted),
    )


class Corrupt(Protocol):
    """Change of masked positions in what the network sees of a sequence, in place; ``Objective.corrupt`` is one."""

    def __call__(
        self,
        inputs: np.ndarray,
        tokens: np.ndarray,
        mask: np.ndarray,
        *,
        mask_id: int,
        vocab_size: int,
        rng: np.random.Generator,
    ) -> None:
        """Change masked positions in place; see ``Objective.corrupt``."""


@frozen
class Drawer:
    """Source of a phase's draws of a split."""

    split: Split
    noise: Noise
    seed: int
    mask_id: int
    progress: tuple[float, float]
    """The stretch of progress that draws are taken from; equal ends fix it."""
    at_least_one: bool
    """Whether a sequence that chance leaves unmasked gets one masked token. Under the NELBO weight it must not: the
    empty mask has its own probability there, and a forced token would be weighed by up to 1/fraction."""
    causal: bool = False
    """Whether nothing is masked and each token is predicted from those before it."""
    corrupt: Corrupt | None = None
    """Change at masked positions; None: every one of them holds the mask token."""
    vocab_size: int = 0
    """Number of ids that ``corrupt`` may choose from."""
    stream: Stream = Stream.TRAINING

    def draw(self, samples: Iterable[int], number: int) -> Draws:
        """Return the draws of these samples with this number."""
        samples = np.asarray(list(samples), dtype=np.int64)
        rows = self.split.rows(samples)
        if self.causal:
            return shifted(rows, samples)
        generators = [generator(self.seed, number, self.stream, int(sample)) for sample in samples]
        low, high = self.progress
        uniform = torch.tensor([rng.random() for rng in generators], dtype=torch.float64)
        progress = low + uniform * (high - low)
        fraction = self.noise.fraction(progress)
        mask = np.stack(
            [
                self._place(tokens, scorable, float(share), rng)
                for tokens, scorable, share, rng in zip(rows.tokens, rows.scorable, fraction, generators, strict=True)
            ]
        )
        draws = corrupt(rows, samples, mask, self.mask_id, progress, fraction)
        if self.corrupt is not None:
            inputs, ids = draws.inputs.numpy(), {"mask_id": self.mask_id, "vocab_size": self.vocab_size}
            for row, rng in enumerate(generators):
                self.corrupt(inputs[row], rows.tokens[row], mask[row], **ids, rng=rng)
        return draws

    def _place(self, tokens: np.ndarray, scorable: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
        mask = placed(self.noise.schedule, tokens, scorable, fraction, rng)
        if self.at_least_one and not mask.any():
            mask[rng.choice(np.flatnonzero(scorable))] = True
        return mask
