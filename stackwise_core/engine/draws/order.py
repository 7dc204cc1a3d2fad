"""The order in which an epoch visits its samples: windows of shuffled chunks, batches within a window.

A chunk is a run of consecutive samples. Boundaries are always computed a whole chunk at a time, since the last bit of a
matrix product can depend on the rows beside it. So a chunk's size is a setting of the run, and a part of a boundary's
name; it doesn't depend on batch size, order or window.
"""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen

from stackwise_core.engine.draws.draws import Stream, generator


@frozen
class Window:
    """Samples whose boundaries are held at the same time, and the steps that train on them."""

    chunks: list[int]
    steps: list[list[np.ndarray]]
    """Samples of the forward passes of each optimizer step."""


@frozen
class Order:
    """Order in which a split's samples are visited; the same whatever the mode, so that modes compare."""

    samples: int
    seq_len: int
    window: int
    batch_size: int
    accumulation: int
    seed: int
    chunk_tokens: int
    """Tokens of a chunk; of longer samples it has one."""

    @property
    def chunk_size(self) -> int:
        """Number of samples of a chunk."""
        return max(1, self.chunk_tokens // self.seq_len)

    @property
    def _chunks_per_window(self) -> int:
        return math.ceil(self.window / self.chunk_size)

    def chunk(self, number: int) -> range:
        """Return the samples of a chunk."""
        size = self.chunk_size
        return range(number * size, min((number + 1) * size, self.samples))

    @property
    def chunks(self) -> int:
        """Number of chunks of the split."""
        return math.ceil(self.samples / self.chunk_size)

    def epoch(self, number: int) -> list[Window]:
        """Return an epoch: chunks are dealt to windows at random, and each window's samples are shuffled."""
        rng = generator(self.seed, number, Stream.ORDER)
        windows = []
        for members in self._dealt(rng):
            samples = rng.permutation(np.concatenate([np.asarray(self.chunk(chunk)) for chunk in members]))
            batches = [samples[at : at + self.batch_size] for at in range(0, len(samples), self.batch_size)]
            steps = [batches[at : at + self.accumulation] for at in range(0, len(batches), self.accumulation)]
            windows.append(Window(sorted(members), steps))
        return windows

    def _dealt(self, rng: np.random.Generator) -> list[list[int]]:
        """Deal the chunks to windows at random."""
        chunks, size = rng.permutation(self.chunks).tolist(), self._chunks_per_window
        return [chunks[start : start + size] for start in range(0, self.chunks, size)]

    def window_sizes(self, number: int) -> list[tuple[int, int]]:
        """Return samples and optimizer steps of each window of an epoch."""
        dealt = self._dealt(generator(self.seed, number, Stream.ORDER))
        samples = [sum(len(self.chunk(chunk)) for chunk in members) for members in dealt]
        return [(size, math.ceil(math.ceil(size / self.batch_size) / self.accumulation)) for size in samples]

    def steps_per_epoch(self, number: int = 0) -> int:
        """Return the optimizer steps of an epoch; epochs can differ by a step where the last chunk is short."""
        return sum(steps for _, steps in self.window_sizes(number))

    def step_at(self, epochs: float) -> int:
        """Return the optimizer step, counted from the first epoch's first, at which so many epochs have passed."""
        whole = int(epochs)
        rest = round((epochs - whole) * self.steps_per_epoch(whole)) if epochs > whole else 0
        return sum(self.steps_per_epoch(number) for number in range(whole)) + rest

    def epoch_of(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the step's place in it."""
        number = 0
        while step >= (length := self.steps_per_epoch(number)):
            step -= length
            number += 1
        return number, step
