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

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import frozen

from stackwise_core.config.model import Config
from stackwise_core.engine.draws.draws import Draws, Stream, corrupt, generator, shifted
from stackwise_core.engine.draws.sequences import Split
from stackwise_core.engine.evaluation.arguments import MOST_SEED, whole
from stackwise_core.engine.rack.forward import AtExit, Forward
from stackwise_core.engine.rack.not_finite import refuse_not_finite
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.run_files.run import perplexity

NO_BOUND = "there is no likelihood"
NEGLIGIBLE = 1e-12
"""A mask that weighs less than this in a band isn't passed through that band's route."""


def binomial_tail(trials: int, probability: float) -> np.ndarray:
    """Compute P(X >= l) for l = 1..trials, X binomial.

    It is the regularised incomplete beta function I_p(l, trials - l + 1).
    """
    if probability <= 0 or probability >= 1:
        return np.full(trials, float(probability >= 1))
    successes = np.arange(trials + 1)
    steps = np.log(np.arange(1, trials + 1))
    log_factorials = np.concatenate([[0.0], np.cumsum(steps)])
    log_choose = log_factorials[-1] - log_factorials - log_factorials[::-1]
    log_mass = log_choose + successes * np.log(probability) + (trials - successes) * np.log1p(-probability)
    return np.cumsum(np.exp(log_mass)[::-1])[::-1][1:]


def count_weights(tokens: int, band: tuple[float, float]) -> np.ndarray:
    """Compute the weight of the mean cross entropy at l = 1..tokens masked positions in the NELBO over a band."""
    return binomial_tail(tokens, band[1]) - binomial_tail(tokens, band[0])


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
    """Number of stacks that the text passed; of a banded rack, number of stacks that share its bands."""
    nats_per_token: float
    standard_error: float | None
    """Standard error of nats_per_token, over sequences and masks; one sequence has none."""
    bits_per_byte: float
    tokens: int
    """Scored tokens that were measured on."""
    bands: tuple[BandLikelihood, ...]
    """Parts whose sum it is; empty for causal language modelling, which is no bound but the likelihood itself."""

    @property
    def perplexity(self) -> float:
        """A bound on the perplexity a token."""
        return perplexity(self.nats_per_token)


def stratified_counts(scored: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw mask counts spread evenly over 1..L.

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
    """Compute nats a token over all sequences, and the standard error.

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
    """Settings of a measurement: the text, and how closely it is measured."""

    split: Split
    mask_id: int
    seed: int
    draws: int
    """Masks a sequence."""
    sequences: int | None = None
    """Number of sequences of the split to use, evenly spaced; None: all."""
    batch_size: int = 16
    bands: int = 4
    """Number of equal intervals of the mask fraction that a sequential rack's bound is divided into."""
    causal: bool = False
    """Whether each token is predicted from those before it, and nothing is masked."""
    notes: tuple[str, ...] = ()
    """Notes on the text for the user."""

    def __attrs_post_init__(self) -> None:
        for name, least in (("draws", 1), ("bands", 1), ("batch_size", 1)):
            whole(name, getattr(self, name), least)
        if self.sequences is not None:
            whole("sequences", self.sequences, 2)
        whole("seed", self.seed, 0, MOST_SEED)

    @classmethod
    def of(cls, config: Config, split: Split, mask_id: int, *, causal: bool, **changes: Any) -> Evaluation:
        """Build from a configuration, with the changes in place of its settings."""
        settings: dict[str, Any] = {
            "seed": config.run.seed,
            "draws": config.evaluation.draws,
            "sequences": config.evaluation.sequences,
            "batch_size": config.training.batch_size,
            "bands": config.evaluation.bands,
        }
        return cls(split=split, mask_id=mask_id, causal=causal, **{**settings, **changes})

    @property
    def samples(self) -> np.ndarray:
        """The sequences to use, int64 [n]."""
        return self.split.evenly_spaced(self.sequences)

    def batches(self) -> Iterator[np.ndarray]:
        """Yield places among the samples, int64 [B]."""
        places = np.arange(len(self.samples))
        for start in range(0, len(places), self.batch_size):
            yield places[start : start + self.batch_size]


@torch.no_grad()
def evaluate(
    forward: Forward,
    evaluation: Evaluation,
    *,
    routes: Sequence[BandRoute],
    exits: Collection[int],
    active: Collection[int] = (),
    streams: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """Compute the NELBO of a rack, all of it on the same masks.

    Args:
        routes: how the rack uses its stacks, in the order of their bands. One route is measured at each of its exits;
            several are added up, each over its own band.
        exits: stacks that the head can read at.
        active: stacks to measure at the active precision; the others are at the trunk's.
        streams: whether only one stack is in memory at a time.
        progress: called with the sequences done so far, and all that there are to do.

    Returns:
        One likelihood a depth, the whole rack's last.

    Raises:
        StackwiseError: a loss isn't a finite number, with the stack and the tensor at which that begins.
    """
    if evaluation.causal:
        return _evaluate_causal(forward, evaluation, routes[0], exits, active, streams, progress)
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
        forward.placement.bring(route.path, active=active, streamed=route.path if streams else ())
        parts.append(np.zeros((len(read), len(bands), len(samples))))

        def tell(done: float, number: int = number) -> None:
            if progress is not None:
                progress(round((number + done) * len(samples)), len(routes) * len(samples))

        _add_bounds(parts[-1], forward, evaluation, route.path, read, bands, counts, scored, tell)
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
    forward: Forward,
    evaluation: Evaluation,
    path: Sequence[int],
    read: Sequence[int],
    bands: Sequence[tuple[float, float]],
    counts: np.ndarray,
    scored: np.ndarray,
    tell: Callable[[float], None],
) -> None:
    """Add the sums over masks, in nats a token, to nelbo [exits to read at, bands, sequences].

    Args:
        counts: int [sequences, draws], how many tokens are masked.
        scored: int [sequences], how many there are to mask.
        tell: called with the share that is done.
    """
    weights = {
        int(length): np.stack([count_weights(int(length), band) for band in bands]) for length in set(scored.tolist())
    }
    # [bands, sequences, draws]
    weighed = np.stack([weights[int(length)][:, of_one - 1] for length, of_one in zip(scored, counts, strict=True)], 1)
    matters = weighed.sum(axis=0) > NEGLIGIBLE
    batches = [
        (places[matters[places, draw]], draw)
        for places in evaluation.batches()
        for draw in range(evaluation.draws)
        if matters[places, draw].any()
    ]
    corrupted = (_corrupted(evaluation, evaluation.samples, counts[:, draw], places, draw) for places, draw in batches)
    exits = {stack: nelbo[place] for place, stack in enumerate(read)}
    for done, at_exit in enumerate(forward.sweep(corrupted, path, read), start=1):
        places, draw = batches[at_exit.batch]
        refuse_not_finite(at_exit.losses, forward, _up_to(path, at_exit.stack), at_exit.draws, NO_BOUND)
        means = _mean_by_sequence(at_exit)
        exits[at_exit.stack][:, places] += weighed[:, places, draw] * means / evaluation.draws
        tell(done / (len(batches) * len(read)))


def _corrupted(evaluation: Evaluation, samples: np.ndarray, counts: np.ndarray, places: np.ndarray, draw: int) -> Draws:
    """Return the sequences at some places of the sample, each with as many masked tokens as counts [n] has for it."""
    rows = evaluation.split.rows(samples[places])
    mask = np.zeros(rows.tokens.shape, dtype=bool)
    for row, place in enumerate(places):
        rng = generator(evaluation.seed, draw, Stream.EVALUATION, int(samples[place]))
        mask[row, rng.permutation(np.flatnonzero(rows.scorable[row]))[: counts[place]]] = True
    fraction = torch.from_numpy(counts[places] / rows.scorable.sum(axis=1))
    return corrupt(rows, samples[places], mask, evaluation.mask_id, fraction, fraction)


def _evaluate_causal(
    forward: Forward,
    evaluation: Evaluation,
    route: BandRoute,
    exits: Collection[int],
    active: Collection[int],
    streams: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Likelihood]:
    """Compute the negative log-likelihood itself, of every token that has one before it in its document."""
    split, samples = evaluation.split, evaluation.samples
    forward.placement.bring(route.path, active=active, streamed=route.path if streams else ())
    read = _exits_of(route, exits)
    losses, predicted = np.zeros((len(read), len(samples))), np.zeros(len(samples), dtype=np.int64)
    batches = [samples[places] for places in evaluation.batches()]
    swept = forward.sweep((shifted(split.rows(members), members) for members in batches), route.path, read)
    for done, at_exit in enumerate(swept, start=1):
        refuse_not_finite(at_exit.losses, forward, _up_to(route.path, at_exit.stack), at_exit.draws, NO_BOUND)
        places = slice(at_exit.batch * evaluation.batch_size, (at_exit.batch + 1) * evaluation.batch_size)
        losses[read.index(at_exit.stack), places] = _mean_by_sequence(at_exit)
        predicted[places] = np.bincount(at_exit.draws.rows.numpy(), minlength=len(batches[at_exit.batch]))
        if progress is not None:
            progress(round(done / (len(batches) * len(read)) * len(samples)), len(samples))
    order = np.arange(len(samples))
    results = []
    for depth, stack in enumerate(read):
        mean, error = mean_and_error(losses[depth], predicted, order)
        passed = route.path.index(stack) + 1
        results.append(Likelihood(passed, mean, error, _bits_per_byte(mean, split), int(predicted.sum()), ()))
    return results


def _up_to(path: Sequence[int], stack: int) -> Sequence[int]:
    return path[: path.index(stack) + 1]


def _exits_of(route: BandRoute, exits: Collection[int]) -> list[int]:
    """Return the stacks of a route to read at: those with a trained exit, and in any case the last."""
    return [stack for stack in route.path if stack in exits or stack == route.path[-1]]


def _bits_per_byte(nats_per_token: float, split: Split) -> float:
    if not split.bytes:
        raise StackwiseError("there are no bits a byte: the tokens of the text stand for no bytes of it.")
    return float(nats_per_token / np.log(2) * split.tokens / split.bytes)


def _mean_by_sequence(at_exit: AtExit) -> np.ndarray:
    """Compute the mean cross entropy of each sequence's predicted tokens, float64 [B]."""
    rows, size = at_exit.draws.rows.numpy(), len(at_exit.draws.inputs)
    per_row = np.maximum(np.bincount(rows, minlength=size), 1)
    return np.bincount(rows, weights=at_exit.losses.double().cpu().numpy(), minlength=size) / per_row
