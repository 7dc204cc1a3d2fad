"""The validation NELBO of a rack by depth and by band, from stratified masks of a fixed count.

For a sequence of L scored tokens the exact bound, over the whole of (0, 1], is

    sum over counts l = 1..L of the mean, over sets M of l positions, of (mean CE over M)

that is, L times the expectation of the mean cross entropy over M with l uniform on 1..L and M uniform of that size: the
weights (|M|-1)! (L-|M|)! / L! of the exact sum are 1 / (l C(L, l)). The band [a, b] of mask fractions weighs the count
l by [I_b - I_a](l, L-l+1), which is the difference of two binomial tails, and bands add up to the whole.

Drawing counts instead of independent positions, and spreading them evenly over the sequences and their draws, cuts the
estimate's standard deviation some tenfold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import frozen

from stackwise_core.config.model import Config
from stackwise_core.data.draws import Draws, Stream, corrupt, generator, shifted
from stackwise_core.data.sequences import Split
from stackwise_core.rack.residency import Residency

NEGLIGIBLE = 1e-12
"""A mask that weighs less than this in a band isn't passed through that band's route."""


def binomial_tail(trials: int, probability: float) -> np.ndarray:
    """P(X >= l) for l = 1..trials, X binomial: the regularised incomplete beta function I_p(l, trials - l + 1)."""
    if probability <= 0 or probability >= 1:
        return np.full(trials, float(probability >= 1))
    successes = np.arange(trials + 1)
    steps = np.log(np.arange(1, trials + 1))
    log_factorials = np.concatenate([[0.0], np.cumsum(steps)])
    log_choose = log_factorials[-1] - log_factorials - log_factorials[::-1]
    log_mass = log_choose + successes * np.log(probability) + (trials - successes) * np.log1p(-probability)
    return np.cumsum(np.exp(log_mass)[::-1])[::-1][1:]


def count_weights(tokens: int, band: tuple[float, float]) -> np.ndarray:
    """What the mean cross entropy at l = 1..tokens masked positions weighs in a sequence's NELBO over a band."""
    return binomial_tail(tokens, band[1]) - binomial_tail(tokens, band[0])


@frozen
class BandRoute:
    """A path through the rack, and the mask fractions that it serves."""

    path: tuple[int, ...]
    band: tuple[float, float]

    def serves(self, fraction: float) -> bool:
        """Whether a fraction is this route's; one between two routes is the lower one's, and 0 the lowest's."""
        return self.band[0] < fraction <= self.band[1] or fraction == self.band[0] == 0


@frozen
class BandLikelihood:
    """The part of a bound that an interval of mask fractions contributes."""

    band: tuple[float, float]
    nats_per_token: float
    standard_error: float | None


@frozen
class Likelihood:
    """An upper bound on the negative log-likelihood of held-out text, at one depth of the rack."""

    depth: int
    """How many stacks the text passed; of a banded rack, how many stacks share its bands."""
    nats_per_token: float
    standard_error: float | None
    """Of nats_per_token, over sequences and masks; one sequence has none."""
    bits_per_byte: float
    tokens: int
    """Scored tokens that were measured on."""
    bands: tuple[BandLikelihood, ...]
    """What it is the sum of; empty for causal language modelling, which is no bound but the likelihood itself."""

    @property
    def perplexity(self) -> float:
        """A bound on the perplexity a token; infinite where it is more than a float holds."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


def stratified_counts(scored: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mask counts spread evenly over 1..L.

    Args:
        scored: int [n], scored tokens L of each sequence.

    Returns:
        Counts int [n, draws], and the order [n] in which the sequences' offsets were dealt: neighbours in it have
        nearly the same counts.
    """
    n = len(scored)
    order = rng.permutation(n)
    offset = np.empty(n)
    offset[order] = (np.arange(n) + rng.random(n)) / n
    quantile = (np.arange(draws)[None, :] + offset[:, None]) / draws  # [n, draws], stratified within and across
    return np.floor(quantile * scored[:, None]).astype(np.int64) + 1, order


def mean_and_error(nelbo: np.ndarray, scored: np.ndarray, order: np.ndarray) -> tuple[float, float | None]:
    """Nats a token over all sequences, and its standard error.

    Args:
        nelbo: float [n], each sequence's estimate in nats a token.
        scored: int [n], its tokens.
        order: int [n], as ``stratified_counts`` gave it. The error is taken from differences of neighbours in it, each
            pair standing for two strata (collapsed strata, Cochran 1977, section 5A.12).
    """
    mean = float((nelbo * scored).sum() / scored.sum())
    residual = (scored * (nelbo - mean) / scored.mean())[order]
    n = len(residual)
    if n < 2:
        return mean, None
    variance = np.square(np.diff(residual)).sum() / (2 * (n - 1))
    return mean, float(np.sqrt(variance / n))


@frozen
class Evaluation:
    """What is measured on, and how closely."""

    split: Split
    mask_id: int
    seed: int
    draws: int
    """Masks a sequence."""
    sequences: int | None = None
    """How many sequences of the split to use, evenly spaced; None: all."""
    batch_size: int = 16
    bands: int = 4
    """Equal intervals of the mask fraction that a sequential rack's bound is divided into."""
    causal: bool = False
    """Whether each token is predicted from those before it, and nothing is masked."""

    @classmethod
    def of(cls, config: Config, split: Split, mask_id: int, **changes: Any) -> Evaluation:
        """As a configuration has it, but for the changes."""
        settings: dict[str, Any] = {
            "seed": config.run.seed,
            "draws": config.evaluation.draws,
            "sequences": config.evaluation.sequences,
            "batch_size": config.training.batch_size,
            "bands": config.evaluation.bands,
            "causal": config.training.objective == "clm",
        }
        return cls(split=split, mask_id=mask_id, **{**settings, **changes})

    @property
    def samples(self) -> np.ndarray:
        """The sequences to use, int64 [n]."""
        return self.split.evenly_spaced(self.sequences)

    def batches(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Places among the samples, and the samples there."""
        samples = self.samples
        for start in range(0, len(samples), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield batch, samples[batch]


@torch.no_grad()
def evaluate(
    residency: Residency,
    evaluation: Evaluation,
    *,
    routes: Sequence[BandRoute],
    exits: Collection[int],
    active: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """The NELBO of a rack, all of it on the same masks.

    Args:
        routes: how the rack uses its stacks, in the order of their bands. One route is measured at each of its exits;
            several are added up, each over its own band.
        exits: stacks that the head can read at.
        active: stacks to measure at the active precision; the others are at the trunk's.
        progress: called with the sequences done so far, and all that there are to do.

    Returns:
        One likelihood a depth, the whole rack's last.
    """
    if evaluation.causal:
        return _evaluate_causal(residency, evaluation, routes[0], exits, active, progress)
    split, samples = evaluation.split, evaluation.samples
    scored = split.rows(samples).scorable.sum(axis=1)
    counts, order = stratified_counts(scored, evaluation.draws, generator(evaluation.seed, 0, Stream.EVALUATION_COUNTS))
    if len(routes) == 1:
        edges = np.linspace(0, 1, evaluation.bands + 1).tolist()
        bands_of, read_at = [list(pairwise(edges))], [_exits_of(routes[0], exits)]
        depths = [routes[0].path.index(stack) + 1 for stack in read_at[0]]
    else:
        bands_of, read_at = [[route.band] for route in routes], [[route.path[-1]] for route in routes]
        depths = [len({stack for route in routes for stack in route.path})]
    parts = []
    for number, (route, read, bands) in enumerate(zip(routes, read_at, bands_of, strict=True)):
        residency.bring(route.path, active=active)
        parts.append(np.zeros((len(read), len(bands), len(samples))))
        for batch, members in evaluation.batches():
            places = np.arange(batch.start, batch.start + len(members))
            _add_bounds(parts[-1], residency, evaluation, route.path, read, bands, places, counts, scored)
            if progress is not None:
                progress(number * len(samples) + int(places[-1]) + 1, len(routes) * len(samples))
    # [depths, bands, sequences]: one route is read at several exits, and each of several has a band of its own.
    nelbo, bands = np.concatenate(parts, axis=1), [band for of_route in bands_of for band in of_route]
    results = []
    for depth, of_depth in zip(depths, nelbo, strict=True):
        by_band = tuple(
            BandLikelihood(band, *mean_and_error(part, scored, order))
            for band, part in zip(bands, of_depth, strict=True)
        )
        mean, error = mean_and_error(of_depth.sum(axis=0), scored, order)
        results.append(Likelihood(depth, mean, error, _bits_per_byte(mean, split), int(scored.sum()), by_band))
    return results


def _add_bounds(
    nelbo: np.ndarray,
    residency: Residency,
    evaluation: Evaluation,
    path: Sequence[int],
    read: Sequence[int],
    bands: Sequence[tuple[float, float]],
    places: np.ndarray,
    counts: np.ndarray,
    scored: np.ndarray,
) -> None:
    """Add what some sequences' masks come to, in nats a token, to nelbo [exits to read at, bands, sequences].

    Args:
        places: of the sequences among all.
        counts: int [sequences, draws], how many tokens are masked.
        scored: int [sequences], how many there are to mask.
    """
    weights = {
        int(length): np.stack([count_weights(int(length), band) for band in bands]) for length in set(scored[places])
    }
    for draw in range(evaluation.draws):
        weighed = np.stack([weights[int(scored[at])][:, counts[at, draw] - 1] for at in places], axis=1)  # [bands, n]
        matters = weighed.sum(axis=0) > NEGLIGIBLE
        if not matters.any():
            continue
        corrupted = _corrupted(evaluation, evaluation.samples, counts[:, draw], places[matters], draw)
        for exit_nelbo, means in zip(nelbo, _mean_cross_entropies(residency, corrupted, path, read), strict=True):
            exit_nelbo[:, places[matters]] += weighed[:, matters] * means / evaluation.draws


def _corrupted(evaluation: Evaluation, samples: np.ndarray, counts: np.ndarray, places: np.ndarray, draw: int) -> Draws:
    """The sequences at some places of the sample, each with as many masked tokens as counts [n] has for it."""
    rows = evaluation.split.rows(samples[places])
    mask = np.zeros(rows.tokens.shape, dtype=bool)
    for row, place in enumerate(places):
        rng = generator(evaluation.seed, draw, Stream.EVALUATION, int(samples[place]))
        mask[row, rng.permutation(np.flatnonzero(rows.scorable[row]))[: counts[place]]] = True
    fraction = torch.from_numpy(counts[places] / rows.scorable.sum(axis=1))
    return corrupt(rows, samples[places], mask, evaluation.mask_id, fraction, fraction)


def _evaluate_causal(
    residency: Residency,
    evaluation: Evaluation,
    route: BandRoute,
    exits: Collection[int],
    active: Collection[int],
    progress: Callable[[int, int], None] | None,
) -> list[Likelihood]:
    """The negative log-likelihood itself, of every token that has one before it in its document."""
    split, samples = evaluation.split, evaluation.samples
    residency.bring(route.path, active=active)
    read = _exits_of(route, exits)
    losses, predicted = np.zeros((len(read), len(samples))), np.zeros(len(samples), dtype=np.int64)
    for batch, members in evaluation.batches():
        draws = shifted(split.rows(members), members)
        predicted[batch] = np.bincount(draws.rows.numpy(), minlength=len(members))
        for depth, means in enumerate(_mean_cross_entropies(residency, draws, route.path, read)):
            losses[depth, batch] = means
        if progress is not None:
            progress(int(members.size + batch.start), len(samples))
    order = np.arange(len(samples))
    results = []
    for depth, stack in enumerate(read):
        mean, error = mean_and_error(losses[depth], predicted, order)
        passed = route.path.index(stack) + 1
        results.append(Likelihood(passed, mean, error, _bits_per_byte(mean, split), int(predicted.sum()), ()))
    return results


def _exits_of(route: BandRoute, exits: Collection[int]) -> list[int]:
    """Stacks of a route to read at: those with a trained exit, and in any case the last."""
    return [stack for stack in route.path if stack in exits or stack == route.path[-1]]


def _bits_per_byte(nats_per_token: float, split: Split) -> float:
    return float(nats_per_token / np.log(2) * split.tokens / split.bytes)


def _mean_cross_entropies(
    residency: Residency, draws: Draws, path: Sequence[int], read: Collection[int]
) -> Iterator[np.ndarray]:
    """At each stack to read at, the mean cross entropy of each sequence's predicted tokens, float64 [B]."""
    rows = draws.rows.numpy()
    per_row = np.maximum(np.bincount(rows, minlength=len(draws.inputs)), 1)
    for losses in residency.cross_entropies(draws, path, read):
        yield np.bincount(rows, weights=losses.double().cpu().numpy(), minlength=len(per_row)) / per_row
