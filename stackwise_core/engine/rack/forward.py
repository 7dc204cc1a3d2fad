"""Forward passes of a rack: embedding, stacks, and the head that reads out at a stack's exit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.rack.attention_context import AttentionContext, Documents
from stackwise_core.engine.rack.compiled_blocks import through_compiled
from stackwise_core.engine.rack.head_pieces import (
    ROWS_MULTIPLE,
    Context,
    TokenLosses,
    cross_entropies,
    losses_in_pieces,
    piece_rows,
    weighted_loss,
)
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.rack import ThroughBlock
from stackwise_core.interfaces.component import ContractError, origin


class AtExit(NamedTuple):
    """A batch, read out at a stack's exit."""

    stack: int
    batch: int
    """Number of the batch."""
    draws: Draws
    losses: Tensor
    """Of its predicted tokens [N]: cross entropies, unless another function was asked for."""


class Forward:
    """The rack as a function of token ids, wherever its stacks are.

    Args:
        window: how many sequences' hidden states may be held between two streamed stacks.
    """

    def __init__(self, placement: Placement, window: int) -> None:
        self.placement, self._window = placement, window
        self._is_eager = False
        self.compiled_batch = 0
        """Sequences of a training batch that passes compiled blocks, if the placement has any. Others are too few to be
        worth a graph of their own. Without gradients, boundaries pass compiled blocks, and nothing else does."""

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        return self.placement.device

    def embed(self, index: int, inputs: Tensor, fraction: Tensor) -> Tensor:
        """Return hidden states [B, T, D] that enter a stack from input ids [B, T] at mask fractions float64 [B]."""
        return self.placement.ends(index).embed(inputs.to(self.device), fraction.to(self.device))

    def context(self, documents: Documents | Tensor) -> AttentionContext:
        """Return the inputs of attention, the same for every stack and pass of a batch.

        Args:
            documents: those of the batch's rows, or its segments int [B, T] on the CPU, from which they are found.
        """
        return self.placement.shared_ends.context(documents)

    def through(self, index: int, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Pass hidden states [B, T, D] through a stack; the residual stream is fp32 before and after."""
        stack = self.placement.stack(index)
        if stack.training != torch.is_grad_enabled():
            stack.train(torch.is_grad_enabled())  # dropout is for training steps, which alone keep a graph
        through = self._through_block(index, hidden)
        with self.placement.precision(index).autocast(self.device):
            try:
                passed: Tensor = stack(hidden, context) if through is None else stack(hidden, context, through=through)
            except RuntimeError as error:
                if "memory" in str(error) or "CUDA error" in str(error):
                    raise
                raise self._not_a_stack(index, hidden, f"can't be computed: {error}") from error
        if passed.shape != hidden.shape or passed.dtype != hidden.dtype:
            raise self._not_a_stack(index, hidden, f"gave {passed.dtype} {list(passed.shape)}")
        return passed

    def _through_block(self, index: int, hidden: Tensor) -> ThroughBlock | None:
        """Return the function that passes hidden states [B, T, D] through a stack's blocks; None: they do."""
        if self._is_eager or not self.placement.is_compiled(index):
            return None
        if torch.is_grad_enabled() and len(hidden) != self.compiled_batch:
            return None
        return through_compiled

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Compile nothing while this lasts."""
        before, self._is_eager = self._is_eager, True
        try:
            yield
        finally:
            self._is_eager = before

    def _not_a_stack(self, index: int, hidden: Tensor, what: str) -> ContractError:
        """Return the error for a stack that no longer takes hidden states to hidden states."""
        adapters = [origin(adapter) for adapter in self.placement.adapters(index)]
        beside = f", with {' and '.join(adapters)} on it," if adapters else ""
        expected = f"expected {hidden.dtype} {list(hidden.shape)}, as it went in"
        said = f"the stack that prepare() left{beside} {' '.join(what.split())}; {expected}"
        return ContractError(self.placement.precision(index), said.replace("torch.", ""))

    def sweep(
        self,
        batches: Iterable[Draws],
        path: Sequence[int],
        read: Collection[int],
        losses_of: TokenLosses = cross_entropies,
    ) -> Iterator[AtExit]:
        """Read batches out at each stack of a path that is to be read at, from the tokens on.

        Where stacks are streamed, as many batches as a window holds pass one together before the next is read.

        Args:
            losses_of: as ``losses`` has it.
        """
        left, first = iter(batches), 0
        while group := self._group(left):
            hidden: list[Tensor] = []  # of each batch, [B, T, D]
            contexts = [self.context(draws.segments) for draws in group]
            for place, index in enumerate(path):
                with self.placement.visiting(index):
                    for number, draws in enumerate(group):
                        if place == 0:
                            hidden.append(self.embed(index, draws.inputs, draws.fraction))
                        with self.eagerly():  # batches of any size come here
                            hidden[number] = self.through(index, hidden[number], contexts[number])
                        if index in read:
                            predicted = hidden[number].flatten(0, 1).index_select(0, draws.masked.to(self.device))
                            targets = draws.targets.to(self.device)
                            losses = self.losses(index, predicted, targets, losses_of)
                            yield AtExit(index, first + number, draws, losses)
            first += len(group)

    def _group(self, batches: Iterator[Draws]) -> list[Draws]:
        """Return the next batches to pass the stacks together."""
        group = [*islice(batches, 1)]
        if not self.placement.streams:
            return group
        while group and sum(len(each.inputs) for each in group) < self._window:
            following = [*islice(batches, 1)]
            if not following:
                break
            group += following
        return group

    def cross_entropy(self, index: int, hidden: Tensor, targets: Tensor) -> Tensor:
        """Compute cross entropies [N], in nats, of targets [N] from hidden states [N, D] at the exit of a stack."""
        return self.losses(index, hidden, targets, cross_entropies)

    def losses(self, index: int, hidden: Tensor, targets: Tensor, losses_of: TokenLosses) -> Tensor:
        """Compute losses [N] of targets [N] from hidden states [N, D] at the exit of a stack.

        Args:
            losses_of: makes them of logits [n, V], where the mask token's is -inf, and targets [n]. It is called for
                pieces of rows where the logits of all would be large.
        """
        rows = self._piece_rows(index)
        if len(hidden) <= rows:
            return self._losses(index, hidden, targets, losses_of)
        ends, (normed, dtype) = self.placement.ends(index), self._entering(index, hidden)
        how: dict[str, Any] = {"mask_id": ends.mask_id, "rows": rows, "dtype": dtype, "context": self._autocast(index)}
        return losses_in_pieces(normed, ends.head, targets, losses_of, **how)

    def _losses(self, index: int, hidden: Tensor, targets: Tensor, losses_of: TokenLosses) -> Tensor:
        """Compute losses [N] of logits that are in memory together."""
        with self.placement.precision(index).autocast(self.device):
            logits = self.placement.ends(index).predictions(hidden, self.placement.stack(index).norm, ROWS_MULTIPLE)
        return losses_of(logits, targets)

    def weighted_loss(
        self, index: int, hidden: Tensor, targets: Tensor, weights: Tensor, losses_of: TokenLosses
    ) -> Tensor:
        """Compute the sum over tokens of weight times loss, from hidden states [N, D] at the exit of a stack.

        Its gradients are those of the sum of ``losses`` times weights. Where the logits of all tokens would be large,
        they are computed here, piece by piece, and no logits are kept for the backward pass.

        Args:
            targets: [N], on the device that computes, as are the weights [N].
            losses_of: as ``losses`` has it.
        """
        rows = self._piece_rows(index)
        if len(hidden) <= rows:
            losses = self._losses(index, hidden, targets, losses_of)
            return (weights.to(losses) * losses).sum()
        ends, (normed, dtype) = self.placement.ends(index), self._entering(index, hidden)
        how: dict[str, Any] = {"mask_id": ends.mask_id, "rows": rows, "dtype": dtype, "context": self._autocast(index)}
        return weighted_loss(normed, ends.head, targets, weights, losses_of, **how)

    def _autocast(self, index: int) -> Context:
        """Return the maker of the context that a stack's precision computes in."""
        return partial(self.placement.precision(index).autocast, self.device)

    def _entering(self, index: int, hidden: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return hidden states [N, D] as the head reads them, and the number format of its products."""
        with self.placement.precision(index).autocast(self.device):
            normed, kind = self.placement.stack(index).norm(hidden), self.device.type
            held = self.placement.ends(index).head.dtype
            return normed, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else held

    def _piece_rows(self, index: int) -> int:
        return piece_rows(len(self.placement.ends(index).head), self.device)

    def predict(self, path: Sequence[int], inputs: Tensor, segments: Tensor, fraction: Tensor, where: Tensor) -> Tensor:
        """Compute logits [N, V] of possible tokens at flat positions [N] of ids [B, T]; the mask's is -inf."""

        def read(index: int, hidden: Tensor) -> Tensor:
            chosen = hidden.flatten(0, 1).index_select(0, where.to(self.device))
            return self.placement.ends(index).predictions(chosen, self.placement.stack(index).norm)

        return self._read_out(path, inputs, segments, fraction, read)

    def logits(self, path: Sequence[int], inputs: Tensor, segments: Tensor, fraction: Tensor) -> Tensor:
        """Compute logits [B, T, V] of ids [B, T] at the end of a path, as the head gives them."""

        def read(index: int, hidden: Tensor) -> Tensor:
            return self.placement.ends(index).logits(hidden, self.placement.stack(index).norm)

        return self._read_out(path, inputs, segments, fraction, read)

    def _read_out(
        self,
        path: Sequence[int],
        inputs: Tensor,
        segments: Tensor,
        fraction: Tensor,
        read: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Return the result of ``read`` on the hidden states [B, T, D] at the exit of a path's last stack."""
        hidden, context = self.embed(path[0], inputs, fraction), self.context(segments)
        for index in path:
            with self.placement.visiting(index):
                with self.eagerly():
                    hidden = self.through(index, hidden, context)
                if index == path[-1]:
                    with self.placement.precision(index).autocast(self.device):
                        return read(index, hidden)
        raise AssertionError("a path has stacks")
