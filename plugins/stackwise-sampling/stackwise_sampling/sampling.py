"""Sampling of texts from a rack: masked tokens are filled step by step, or a causal rack writes token by token.

``ancestral`` is the reverse process of masked diffusion (MDLM, arXiv 2406.07524, eq. 7): from time t to s a masked
token stays masked with probability s/t, and else becomes one that is drawn from the network's prediction. With T equal
steps from 1 to 0, each token so leaves the mask at a step that is uniform on 1..T and drawn independently of all else.
All these steps are drawn first (as arXiv 2409.02908 has it for T to infinity), and the network is asked where there is
something to fill: a step that fills nothing costs nothing.

``by_certainty`` has each step fill as many of the tokens that the network is surest of (``unmasking_orders``).

Text number n under a seed takes its randomness from generators of its own, so it is the same in whatever company.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Literal, Protocol

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from stackwise_core.engine.draws.draws import Stream, generator
from stackwise_core.engine.evaluation.arguments import MOST_SEED, whole
from stackwise_core.errors import UsageError
from stackwise_sampling.gapped_text import GappedText
from stackwise_sampling.token_choice import NEVER, chosen
from stackwise_sampling.unmasking_orders import confidence, counts, margin, negative_entropy
from stackwise_sampling.windows import Block, block_length, blocks

Order = Literal["random", "confidence", "margin", "entropy"]
ORDERS: tuple[Order, ...] = ("random", "confidence", "margin", "entropy")
LENGTH_MULTIPLE = 64
"""A causal rack reads a multiple of this many tokens: kernels are kept for every shape that was met."""


class Denoiser(Protocol):
    """Predictor of masked tokens, or of a causal rack's next ones."""

    def predict(self, inputs: Tensor, segments: Tensor, fraction: float, where: Tensor) -> Tensor:
        """Return logits float32 [N, V] at flat positions ``where`` int64 [N] of ids int64 [B, T].

        Args:
            segments: int64 [B, T], 1, or 0 at given special tokens, which nothing attends to.
            fraction: the share of the tokens in view that is masked, which chooses the route of a banded rack and is
                what a rack with a time input is told.
        """


@frozen
class Sampling:
    """Settings of a sampler."""

    order: Order | None = None
    """None: random; a causal rack has none."""
    steps: int | None = None
    """Steps of all blocks together. None: one for each token to fill."""
    temperature: float = 1.0
    """Divisor of the logits. 0 takes the likeliest token each time."""
    top_p: float = 1.0
    """The share of probability that the tokens come from, the likeliest first."""
    block: int | None = None
    """Most tokens that a block spans; None: all, or where the rack can't see all of them at a time half of what it
    sees."""
    num: int = 1
    """Number of texts."""
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.order not in (None, *ORDERS):
            raise UsageError(f"order {self.order!r}: expected one of {', '.join(ORDERS)}.")
        whole("num", self.num, 1)
        for name in ("steps", "block"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("temperature", "top_p"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise UsageError(f"{name}: expected a number, found {getattr(self, name)!r:.80}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature}: expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: expected more than 0 and at most 1.")
        whole("seed", self.seed, 0, MOST_SEED)


@frozen(eq=False)
class Step:
    """The texts after a step."""

    number: int
    steps: int
    """Total number of steps."""
    passes: int
    """Forward passes so far."""
    ids: Tensor
    """int64 [num, L], which the next step changes in place."""
    rows: Tensor
    """int64 [n], the text of each token that this step filled."""
    places: Tensor
    """int64 [n], its place there."""


Filled = tuple[Tensor, Tensor]
"""Rows and places, int64 [n] each."""


@frozen(eq=False)
class _Texts:
    """State of a sampler: the texts so far."""

    denoiser: Denoiser
    sampling: Sampling
    special: Tensor
    """int64, ids that are never put anywhere."""
    missing: Tensor
    """bool [L], what was at the beginning."""
    ids: Tensor
    """int64 [num, L]"""
    segments: Tensor
    """int64 [L]"""
    generators: tuple[np.random.Generator, ...]

    @classmethod
    def of(
        cls, denoiser: Denoiser, ids: np.ndarray, missing: np.ndarray, special_ids: Collection[int], sampling: Sampling
    ) -> _Texts:
        special = torch.tensor(sorted(special_ids))
        row, gaps = torch.from_numpy(ids), torch.from_numpy(missing)
        return cls(
            denoiser,
            sampling,
            special,
            gaps,
            row.repeat(sampling.num, 1),
            (gaps | ~torch.isin(row, special)).long(),
            tuple(generator(sampling.seed, 0, Stream.SAMPLING, number) for number in range(sampling.num)),
        )

    def uniforms(self, *shape: int) -> Tensor:
        """float64 [num, *shape]"""
        drawn = np.empty((len(self.generators), *shape))
        for of_one, into in zip(self.generators, drawn, strict=True):
            of_one.random(out=into)
        return torch.from_numpy(drawn)

    def predictions(self, rows: Tensor | None, window: tuple[int, int], fraction: float, where: Tensor) -> Tensor:
        """Return logits [N, V] at flat positions in the windows of these rows, or of all. Special ids get ``NEVER``."""
        inputs = self.ids[:, window[0] : window[1]]
        inputs = inputs if rows is None else inputs[rows]
        segments = self.segments[window[0] : window[1]].expand(len(inputs), -1)
        logits = self.denoiser.predict(inputs, segments, fraction, where)
        return logits.index_fill(-1, self.special.to(logits.device), NEVER)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draw ids int64 [N]."""
        return chosen(logits, uniforms.to(logits.device), self.sampling.temperature, self.sampling.top_p)

    def fill(self, rows: Tensor, places: Tensor, tokens: Tensor) -> Filled:
        """Put tokens where they belong."""
        self.ids[rows, places] = tokens.cpu()
        return rows, places


def sample(
    denoiser: Denoiser,
    text: GappedText,
    sampling: Sampling,
    *,
    seq_len: int,
    vocab_size: int | None = None,
    causal: bool = False,
) -> Iterator[Step]:
    """Fill the gaps of a text.

    Args:
        seq_len: most tokens that the network sees at a time.
        vocab_size: how many ids it predicts; None: those of the tokenizer. What stands for no text is put nowhere.
        causal: whether it predicts each token from those before it, and nothing is masked.

    Raises:
        UsageError: blocks and steps don't fit the text, or a causal rack can't do what is asked. No step is done yet.
    """
    if causal:
        _refuse_beyond_causal(text, sampling)
    run = go_on if causal else unmask
    never = text.tokenizer.wordless_ids(vocab_size or text.tokenizer.vocab_size)
    return run(denoiser, text.ids, text.missing, sampling, special_ids=never, seq_len=seq_len)


def _refuse_beyond_causal(text: GappedText, sampling: Sampling) -> None:
    for name in ("order", "steps", "block"):
        if getattr(sampling, name) is not None:
            raise UsageError(
                f"{name}: expected none, since the rack is causal: it writes from left to right, a token a step."
            )
    if not text.missing.any() or not text.missing[int(text.missing.argmax()) :].all():
        raise UsageError("the rack is causal: it continues a text, and can't fill gaps within one.")
    if text.missing[0]:
        raise UsageError("the rack is causal: it continues a text, and needs a prompt of at least one token.")
    last = int(text.ids[int(text.missing.argmax()) - 1])
    if last in text.tokenizer.special_ids:
        raise UsageError(
            f"the rack is causal: the prompt ends with the special token {text.tokenizer.decode([last])!r}, and it "
            "never predicts what comes right after one. End the prompt with text."
        )


def unmask(
    denoiser: Denoiser,
    ids: np.ndarray,
    missing: np.ndarray,
    sampling: Sampling,
    *,
    special_ids: Collection[int],
    seq_len: int,
) -> Iterator[Step]:
    """Fill what is missing of a text, block by block.

    Args:
        ids: int64 [L], the mask token where one is missing.
        missing: bool [L].
        special_ids: tokens that are never put anywhere, the mask among them.
        seq_len: most tokens that the network sees at a time.

    Raises:
        UsageError: blocks and steps don't fit the text.
    """
    plan = blocks_of(missing, seq_len, sampling)
    return _fill_blocks(_Texts.of(denoiser, ids, missing, special_ids, sampling), plan)


def _fill_blocks(texts: _Texts, plan: list[Block]) -> Iterator[Step]:
    fill = ancestral if texts.sampling.order in (None, "random") else by_certainty
    nowhere = torch.empty(0, dtype=torch.int64)
    number, passes, steps = 0, 0, sum(block.steps for block in plan)
    for block in plan:
        for filled in fill(texts, block):
            number, passes = number + 1, passes + (filled is not None)
            yield Step(number, steps, passes, texts.ids, *(filled or (nowhere, nowhere)))


def blocks_of(missing: np.ndarray, seq_len: int, sampling: Sampling) -> list[Block]:
    """Return the blocks of a text, with their steps and windows.

    Raises:
        UsageError: blocks and steps don't fit the text.
    """
    tokens = int(missing.sum())
    steps = sampling.steps or tokens
    if sampling.order not in (None, "random"):
        steps = min(steps, tokens)  # a step fills a token or more
    return blocks(missing, seq_len, block_length(len(missing), seq_len, sampling.block), steps)


def _missing_in(texts: _Texts, block: Block) -> tuple[Tensor, int, int]:
    """Return the places [G] that a block fills, and two counts in view: other masked tokens, and non-special ones."""
    begin, end = block.window
    places = texts.missing[block.start : block.stop].nonzero()[:, 0] + block.start
    others = int(texts.missing[max(begin, block.stop) : end].sum())
    return places, others, int(texts.segments[begin:end].sum())


def ancestral(texts: _Texts, block: Block) -> Iterator[Filled | None]:
    """Fill a block, each token at a random step; what each step filled, None where it was nothing."""
    begin, end = block.window
    places, others, tokens = _missing_in(texts, block)
    uniforms = texts.uniforms(2, len(places))
    leaves = (uniforms[:, 0] * block.steps).long()  # [num, G], the step at which each is filled
    for step in range(block.steps):
        row, gap = (leaves == step).nonzero(as_tuple=True)
        if not len(row):
            yield None
            continue
        time = 1 - step / block.steps
        rows, place_of_row = row.unique(return_inverse=True)
        where = place_of_row * (end - begin) + places[gap] - begin
        logits = texts.predictions(rows, block.window, (time * len(places) + others) / tokens, where)
        yield texts.fill(row, places[gap], texts.choose(logits, uniforms[row, 1, gap]))


def by_certainty(texts: _Texts, block: Block) -> Iterator[Filled | None]:
    """Fill a block, the surest first; what each step filled."""
    begin, end = block.window
    places, others, tokens = _missing_in(texts, block)
    order, num = texts.sampling.order, texts.sampling.num
    rows = torch.arange(num)[:, None]
    offsets = rows * (end - begin) - begin
    left = places.repeat(num, 1)  # [num, m], the places that are still masked
    for count in counts(len(places), block.steps):
        m = left.shape[1]
        where = (offsets + left).flatten()
        logits = texts.predictions(None, block.window, (m + others) / tokens, where)
        uniforms = texts.uniforms(m).flatten()
        candidates = texts.choose(logits, uniforms) if order == "confidence" else None
        certainty = _certainty(order, logits, candidates).view(num, m).cpu()
        surest = certainty.sort(dim=1, descending=True, stable=True).indices
        picked, kept = surest[:, :count], surest[:, count:].sort(dim=1).values
        at = (rows * m + picked).flatten()
        if candidates is None:
            tokens_there = texts.choose(logits[at.to(logits.device)], uniforms[at])
        else:
            tokens_there = candidates[at.to(logits.device)]
        yield texts.fill(rows.expand(-1, count).flatten(), left.gather(1, picked).flatten(), tokens_there)
        left = left.gather(1, kept)


def _certainty(order: Order | None, logits: Tensor, candidates: Tensor | None) -> Tensor:
    """Return the network's certainty at each position [N]."""
    if candidates is not None:
        return confidence(logits, candidates)
    return margin(logits) if order == "margin" else negative_entropy(logits)


def go_on(
    denoiser: Denoiser,
    ids: np.ndarray,
    missing: np.ndarray,
    sampling: Sampling,
    *,
    special_ids: Collection[int],
    seq_len: int,
) -> Iterator[Step]:
    """Have a causal rack write what is missing at the end of a text, each token from the last ``seq_len`` before it.

    Args:
        As ``unmask``; at least one token is given, and what is missing is the end.
    """
    texts = _Texts.of(denoiser, ids, missing, special_ids, sampling)
    rows, places = torch.arange(sampling.num), np.flatnonzero(missing)
    for number, place in enumerate(map(int, places), start=1):
        begin = max(0, place - seq_len)
        # What comes after a token isn't seen by it, and so may be anything.
        length = -(-(place - begin) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        end = min(begin + min(length, seq_len), len(ids))
        where = rows * (end - begin) + place - begin - 1
        logits = texts.predictions(None, (begin, end), 0.0, where)
        tokens = texts.choose(logits, texts.uniforms(1)[:, 0])
        filled = texts.fill(rows, torch.full_like(rows, place), tokens)
        yield Step(number, len(places), number, texts.ids, *filled)
