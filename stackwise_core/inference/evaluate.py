"""The validation NELBO of every prefix of a rack, from stratified masks of a fixed count.

For a sequence of L scored tokens the exact bound, over the whole of (0, 1], is

    sum over counts l = 1..L of the mean, over sets M of l positions, of (mean CE over M)

that is, L times the expectation of the mean cross entropy over M with l uniform on 1..L and M uniform of that size: the
weights (|M|-1)! (L-|M|)! / L! of the exact sum are 1 / (l C(L, l)). The band [a, b] of mask fractions weighs the count
l by [I_b - I_a](l, L-l+1), which is the difference of two binomial tails, and bands add up to the whole.

Drawing counts instead of independent positions, and spreading them evenly over the sequences and their draws, cuts the
estimate's standard deviation some tenfold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from attrs import frozen

from stackwise_core.data.draws import Draws, Stream, corrupt, generator
from stackwise_core.data.sequences import Split
from stackwise_core.rack.residency import Residency


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
class Likelihood:
    """An upper bound on the negative log-likelihood of held-out text, at one depth of the rack."""

    depth: int
    """How many stacks the text passed."""
    nats_per_token: float
    standard_error: float | None
    """Of nats_per_token, over sequences and masks; one sequence has none."""
    bits_per_byte: float
    tokens: int
    """Scored tokens that were measured on."""


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


@torch.no_grad()
def evaluate(
    residency: Residency,
    split: Split,
    *,
    path: Sequence[int],
    mask_id: int,
    seed: int,
    draws: int,
    sequences: int | None = None,
    batch_size: int = 16,
    band: tuple[float, float] = (0.0, 1.0),
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """The NELBO at the exit of every stack of a path, all on the same masks.

    Args:
        path: stacks in order.
        draws: masks a sequence.
        sequences: how many sequences of the split to use, evenly spaced; None: all.
        band: mask fractions that the bound is taken over.
        progress: called with the number of sequences just done.
    """
    count = len(split) if sequences is None else min(sequences, len(split))
    samples = np.unique(np.linspace(0, len(split) - 1, count).round().astype(np.int64))
    scored = split.rows(samples).scorable.sum(axis=1)
    counts, order = stratified_counts(scored, draws, generator(seed, 0, Stream.EVALUATION_COUNTS))
    band_weights = {int(length): count_weights(int(length), band) for length in np.unique(scored)}
    nelbo = np.zeros((len(path), len(samples)))
    for start in range(0, len(samples), batch_size):
        batch = slice(start, start + batch_size)
        rows = split.rows(samples[batch])
        for draw in range(draws):
            mask = np.zeros(rows.tokens.shape, dtype=bool)
            for row, sample in enumerate(samples[batch]):
                rng = generator(seed, draw, Stream.EVALUATION, int(sample))
                scorable = np.flatnonzero(rows.scorable[row])
                mask[row, rng.permutation(scorable)[: counts[start + row, draw]]] = True
            fraction = torch.from_numpy(mask.mean(axis=1))
            corrupted = corrupt(rows, samples[batch], mask, mask_id, fraction, fraction)
            weights = [
                band_weights[int(length)][number - 1]
                for length, number in zip(scored[batch], counts[batch, draw], strict=True)
            ]
            for depth, means in enumerate(_mean_cross_entropies(residency, corrupted, path)):
                nelbo[depth, batch] += np.asarray(weights) * means / draws
        if progress is not None:
            progress(len(rows.tokens))
    results = []
    for depth in range(len(path)):
        mean, error = mean_and_error(nelbo[depth], scored, order)
        bits_per_byte = mean / np.log(2) * split.tokens / split.bytes
        results.append(Likelihood(depth + 1, mean, error, float(bits_per_byte), int(scored.sum())))
    return results


def _mean_cross_entropies(residency: Residency, draws: Draws, path: Sequence[int]) -> list[np.ndarray]:
    """For each depth, the mean cross entropy of each sequence's masked tokens, float64 [B]."""
    device = residency.device
    hidden = residency.ends.embed(draws.inputs.to(device))
    context = residency.ends.context(draws.segments.to(device))
    masked, targets = draws.masked.to(device), draws.targets.to(device)
    rows = draws.rows.numpy()
    per_row = np.bincount(rows, minlength=len(draws.inputs))
    means = []
    for index in path:
        hidden = residency.through(index, hidden, context)
        losses = residency.cross_entropy(index, hidden.flatten(0, 1)[masked], targets)
        means.append(np.bincount(rows, weights=losses.double().cpu().numpy(), minlength=len(per_row)) / per_row)
    return means
