import itertools
import math

import numpy as np
import pytest

from stackwise_core.inference import evaluate as module
from stackwise_core.inference.evaluate import binomial_tail, count_weights, evaluate, mean_and_error, stratified_counts
from tests.joint import Joint
from tests.tiny import run_tiny

JOINT = Joint()


def nelbo_by_counts(x, band) -> float:
    """A sequence's bound over a band: each count's mean cross entropy, weighed."""
    weights = count_weights(len(x), band)
    return sum(
        weights[len(masked) - 1] * JOINT.cross_entropies(x, masked).mean() / math.comb(len(x), len(masked))
        for masked in JOINT.subsets()
    )


def test_weights_by_count_give_the_exact_nelbo():
    """Over (0, 1] every count weighs one, and the sum is the enumerated bound and -log p(x)."""
    assert np.array_equal(count_weights(5, (0.0, 1.0)), np.ones(5))
    for x in itertools.islice(JOINT.sequences(), 0, None, 17):
        assert nelbo_by_counts(x, (0.0, 1.0)) == pytest.approx(JOINT.exact_nelbo(x), abs=1e-9)
        assert nelbo_by_counts(x, (0.0, 1.0)) == pytest.approx(-math.log(JOINT.table[x]), abs=1e-9)


def test_bands_add_up_to_the_whole():
    """However (0, 1] is cut, the bands' bounds add up."""
    x = (0, 2, 1, 1, 0)
    parts = [nelbo_by_counts(x, band) for band in itertools.pairwise([0.0, 0.15, 0.5, 0.9, 1.0])]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(JOINT.exact_nelbo(x), abs=1e-9)


@pytest.mark.parametrize("trials", [1, 7, 512])
@pytest.mark.parametrize("probability", [1e-4, 0.15, 0.5, 0.999])
def test_binomial_tail_is_the_incomplete_beta_integral(trials, probability):
    """P(X >= l) equals the beta integral from 0 to p, done by quadrature."""
    tail = binomial_tail(trials, probability)
    nodes, weights = np.polynomial.legendre.leggauss(600)
    t = (nodes + 1) / 2 * probability
    for count in {1, (trials + 1) // 2, trials}:
        log_beta = math.lgamma(count) + math.lgamma(trials - count + 1) - math.lgamma(trials + 1)
        integrand = np.exp((count - 1) * np.log(t) + (trials - count) * np.log1p(-t) - log_beta)
        assert tail[count - 1] == pytest.approx((weights * integrand).sum() * probability / 2, abs=1e-9)


def test_counts_are_spread_evenly_within_and_across_sequences():
    """Pooled over sequences and draws, every count from 1 to L turns up equally often."""
    scored = np.full(64, 32)
    counts, order = stratified_counts(scored, 4, np.random.default_rng(0))
    assert sorted(order) == list(range(64))
    assert np.bincount(counts.ravel(), minlength=33)[1:].tolist() == [8] * 32
    assert (np.diff(counts, axis=1) >= 7).all()  # a sequence's own draws are a quarter of the range apart


def test_standard_error_is_that_of_repeated_estimates():
    """Over many repetitions the stated error matches the estimates' real spread, and is smaller than a naive one."""
    rng = np.random.default_rng(1)
    scored, difficulty = np.full(100, 40), rng.normal(0, 0.05, 100)
    means, errors, naive = [], [], []
    for _ in range(300):
        counts, order = stratified_counts(scored, 2, rng)
        sample = rng.permutation(difficulty)
        estimates = (3 * counts / 40).mean(axis=1) + sample
        mean, error = mean_and_error(estimates, scored, order)
        means.append(mean)
        errors.append(math.hypot(error, 0))
        naive.append(estimates.std(ddof=1) / 10)
    # The sum of `difficulty` is the same each time, so the spread is that of the counts; the error holds for new text.
    assert np.mean(errors) < 0.5 * np.mean(naive)
    assert np.mean(errors) == pytest.approx(0.05 / 10, rel=0.15)
    assert np.std(means) < np.mean(errors)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("evaluate"))


def measure(ran, **changes):
    settings = {"path": range(3), "mask_id": 256, "seed": 3, "draws": 4, "batch_size": 8} | changes
    return evaluate(ran.engine._residency, ran.setup.corpus.validation, **settings)


def test_evaluation_is_deterministic_by_seed(ran):
    """The same seed gives the same number to the bit, another seed another one."""
    first, again, other = measure(ran), measure(ran), measure(ran, seed=4)
    assert first == again
    assert first != other


def test_evaluation_does_not_depend_on_the_batch_size(ran):
    """Batches are a matter of memory."""
    for one, other in zip(measure(ran), measure(ran, batch_size=3), strict=True):
        assert one.nats_per_token == pytest.approx(other.nats_per_token, abs=1e-5)


def test_bands_of_an_evaluation_add_up(ran):
    """On the same masks the bands' bounds add up to the whole."""
    whole = measure(ran)[-1].nats_per_token
    bands = [measure(ran, band=band)[-1].nats_per_token for band in ((0.0, 0.3), (0.3, 0.8), (0.8, 1.0))]
    assert sum(bands) == pytest.approx(whole, abs=1e-9)


def test_more_draws_agree_within_the_standard_error(ran):
    """The estimate converges on what far more masks give."""
    few, many = measure(ran, draws=2)[-1], measure(ran, draws=64)[-1]
    assert abs(few.nats_per_token - many.nats_per_token) < 4 * few.standard_error


def test_each_depth_is_read_out_through_its_own_norm(ran):
    """A prefix evaluated alone gives what it gives within the whole rack."""
    assert measure(ran, path=range(2)) == measure(ran)[:2]


def test_bits_per_byte_of_bytes_are_nats_over_ln_2(ran):
    """With a token a byte, bits a byte are nats a token in another unit."""
    for likelihood in measure(ran):
        assert likelihood.bits_per_byte == pytest.approx(likelihood.nats_per_token / math.log(2))


def test_uniform_predictor_scores_the_logarithm_of_the_vocabulary(ran, monkeypatch):
    """A rack whose head says nothing costs ln(vocabulary without the mask token) a token, at every depth."""
    ends = ran.engine._residency.ends
    monkeypatch.setattr(ends, "logits", lambda hidden, norm: hidden.new_zeros(*hidden.shape[:-1], 258))
    for likelihood in measure(ran):
        assert likelihood.nats_per_token == pytest.approx(math.log(257), abs=1e-6)
        assert likelihood.standard_error == pytest.approx(0, abs=1e-7)
    assert module.evaluate is evaluate
