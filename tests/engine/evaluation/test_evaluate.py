import itertools
import math
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from stackwise_core.engine.draws.sequences import Rows
from stackwise_core.engine.evaluation.evaluate import (
    BandRoute,
    Evaluation,
    binomial_tail,
    count_weights,
    evaluate,
    mean_and_error,
    stratified_counts,
)
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.errors import StackwiseError
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


WHOLE = (BandRoute((0, 1, 2), (0.0, 1.0)),)


def measure(ran, *, routes=WHOLE, **changes):
    settings = {"mask_id": 256, "seed": 3, "draws": 4, "batch_size": 8} | changes
    evaluation = Evaluation(split=ran.setup.corpus.validation, **settings)
    return evaluate(ran.engine.forward, evaluation, routes=routes, exits={0, 1, 2}, active={2})


@pytest.mark.slow
def test_evaluation_is_deterministic_by_seed(ran):
    """The same seed gives the same number to the bit, another seed another one."""
    first, again, other = measure(ran), measure(ran), measure(ran, seed=4)
    assert first == again
    assert first != other


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_batch_size(ran):
    """Batches are a matter of memory."""
    for one, other in zip(measure(ran), measure(ran, batch_size=3), strict=True):
        assert one.nats_per_token == pytest.approx(other.nats_per_token, abs=1e-5)


def test_bands_of_an_evaluation_add_up(ran):
    """On the same masks the bands' bounds add up to the whole, however many there are."""
    whole = measure(ran)
    for bands in (1, 3):
        for depth, likelihood in enumerate(measure(ran, bands=bands)):
            assert [part.band[0] for part in likelihood.bands] == pytest.approx([at / bands for at in range(bands)])
            assert sum(part.nats_per_token for part in likelihood.bands) == pytest.approx(
                whole[depth].nats_per_token, abs=1e-9
            )


def test_routes_through_one_path_are_that_path_s_bands(ran):
    """Divided into routes, which each give their own band alone, a path has the bound that it has undivided."""
    edges = [0.0, 0.3, 0.8, 1.0]
    routes = [BandRoute((0, 1, 2), band) for band in itertools.pairwise(edges)]
    (together,) = measure(ran, routes=routes)
    assert together.depth == 3
    assert [part.band for part in together.bands] == list(itertools.pairwise(edges))
    assert together.nats_per_token == pytest.approx(measure(ran)[-1].nats_per_token, abs=1e-9)
    assert min(part.nats_per_token for part in together.bands) > 0.1


@pytest.mark.slow
def test_more_draws_agree_within_the_standard_error(ran):
    """The estimate converges on what far more masks give."""
    few, many = measure(ran, draws=2)[-1], measure(ran, draws=64)[-1]
    assert abs(few.nats_per_token - many.nats_per_token) < 4 * few.standard_error


def test_each_depth_is_read_out_through_its_own_norm(ran):
    """A prefix evaluated alone gives what it gives within the whole rack."""
    assert measure(ran, routes=[BandRoute((0, 1), (0.0, 1.0))]) == measure(ran)[:2]


def test_bits_per_byte_of_bytes_are_nats_over_ln_2(ran):
    """With a token a byte, bits a byte are nats a token in another unit."""
    for likelihood in measure(ran):
        assert likelihood.bits_per_byte == pytest.approx(likelihood.nats_per_token / math.log(2))


def test_uniform_predictor_scores_the_logarithm_of_the_vocabulary(ran, monkeypatch):
    """A rack whose head says nothing costs ln(vocabulary without the mask token) a token, at every depth."""
    ends = ran.engine.placement.ends(0)
    monkeypatch.setattr(ends, "logits", lambda hidden, norm: hidden.new_zeros(*hidden.shape[:-1], 258))
    for likelihood in measure(ran):
        assert likelihood.nats_per_token == pytest.approx(math.log(257), abs=1e-6)
        assert likelihood.standard_error == pytest.approx(0, abs=1e-7)


class JointRack:
    """A forward whose stack k predicts with the exact conditionals of the k-th joint distribution."""

    device = torch.device("cpu")
    sweep = Forward.sweep

    def __init__(self, joints: list[Joint], causal: bool = False) -> None:
        self.joints, self.causal = joints, causal
        self.seen: list[tuple[tuple[int, ...], torch.Tensor]] = []
        """The path in use, and a batch of inputs that entered it."""

    @property
    def placement(self):
        return self

    def bring(self, path, *, active, streamed):
        self.path = tuple(path)

    def visiting(self, index):
        return nullcontext()

    def eagerly(self):
        return nullcontext()

    def _group(self, batches):
        return list(islice(batches, 2))

    def embed(self, index, inputs, fraction):
        assert index == self.path[0]
        self.seen.append((self.path, inputs))
        return inputs[..., None]

    def context(self, segments):
        return None

    def through(self, index, hidden, context):
        """Log conditionals [B, T, V] below the input ids, which the next stack reads again."""
        ids = hidden[..., -1].long()
        joint = self.joints[index]
        logs = torch.zeros(*ids.shape, joint.vocabulary, dtype=torch.float64)
        for row, x in enumerate(ids.tolist()):
            for at in range(len(x)):
                for token in range(joint.vocabulary):
                    logs[row, at, token] = -self.cross_entropy_of(joint, x, at, token)
        return torch.cat([logs, ids[..., None].double()], dim=-1)

    def cross_entropy_of(self, joint: Joint, x, at, token) -> float:
        """-log p of the token at a masked place, or for a causal rack at the next one."""
        if self.causal:
            at, hidden = at + 1, tuple(range(at + 1, len(x)))
        else:
            hidden = tuple(i for i, seen in enumerate(x) if seen == joint.vocabulary)
        if at not in hidden:
            return 0.0
        truth = [0 if i in hidden else seen for i, seen in enumerate(x)]
        truth[at] = token
        return float(joint.cross_entropies(tuple(truth), hidden)[hidden.index(at)])

    def losses(self, index, hidden, targets, losses_of):
        return -hidden[torch.arange(len(targets)), targets]


@frozen
class Sequences:
    """A split of given sequences, one document each."""

    table: np.ndarray

    @property
    def tokens(self) -> int:
        return self.table.size

    bytes: int = 1000

    def __len__(self) -> int:
        return len(self.table)

    def evenly_spaced(self, count) -> np.ndarray:
        return np.arange(len(self))

    def rows(self, indices) -> Rows:
        return Rows(self.table[indices].astype(np.int32), np.ones_like(self.table[indices], dtype=np.int32))


JOINTS = [Joint(length=4, vocabulary=3, seed=seed) for seed in range(3)]
SEQUENCES = Sequences(np.array([[0, 1, 2, 0], [2, 2, 1, 0], [1, 0, 0, 2]]))
BANDS = [(0.0, 0.2), (0.2, 0.7), (0.7, 1.0)]


def share_of_band(count: int, length: int, band) -> float:
    """By how much the chance of this many masked tokens or more grows over a band, term by term."""

    def tail(p: float) -> float:
        return sum(math.comb(length, k) * p**k * (1 - p) ** (length - k) for k in range(count, length + 1))

    return tail(band[1]) - tail(band[0])


def band_by_enumeration(joint: Joint, x, band) -> float:
    """A sequence's bound over a band, in nats, from every mask there is."""
    return sum(
        share_of_band(len(masked), len(x), band)
        / math.comb(len(x), len(masked))
        * joint.cross_entropies(x, masked).mean()
        for masked in joint.subsets()
    )


def measured(rack: JointRack, routes, draws: int, batch_size: int = 2, **changes):
    evaluation = Evaluation(SEQUENCES, mask_id=3, seed=1, draws=draws, batch_size=batch_size, **changes)
    return evaluate(rack, evaluation, routes=routes, exits={0, 1, 2})


def test_a_banded_rack_has_the_bound_of_its_own_masks():
    """On the very masks that were drawn, band i is stack i's mean cross entropies, weighed; a calculation by hand."""
    rack = JointRack(JOINTS)
    (likelihood,) = measured(rack, [BandRoute((k,), band) for k, band in enumerate(BANDS)], 3, batch_size=3)
    by_hand = [0.0, 0.0, 0.0]
    for (stack,), inputs in rack.seen:
        for x, row in zip(SEQUENCES.table.tolist(), inputs.tolist(), strict=True):
            masked = tuple(i for i, token in enumerate(row) if token == 3)
            share = share_of_band(len(masked), 4, BANDS[stack])
            by_hand[stack] += share * JOINTS[stack].cross_entropies(tuple(x), masked).mean() / 3 / 3
    assert [part.nats_per_token for part in likelihood.bands] == pytest.approx(by_hand, abs=1e-12)
    assert likelihood.nats_per_token == pytest.approx(sum(by_hand), abs=1e-12)
    assert likelihood.depth == 3


@pytest.mark.slow
def test_a_banded_rack_converges_on_the_enumerated_bound():
    """With many masks each band is stack i's exact share, and their sum the whole, within a per cent."""
    (likelihood,) = measured(JointRack(JOINTS), [BandRoute((k,), band) for k, band in enumerate(BANDS)], draws=300)
    exact = [
        sum(band_by_enumeration(JOINTS[k], tuple(x), band) for x in SEQUENCES.table.tolist()) / 12
        for k, band in enumerate(BANDS)
    ]
    assert [part.nats_per_token for part in likelihood.bands] == pytest.approx(exact, rel=0.02)
    assert likelihood.nats_per_token == pytest.approx(sum(exact), rel=0.01)


@pytest.mark.slow
def test_one_predictor_in_all_bands_has_the_likelihood_itself():
    """With the exact conditionals throughout, the bands of the bound add up to -log p(x)."""
    rack = JointRack([JOINTS[1]] * 3)
    (likelihood,) = measured(rack, [BandRoute((k,), band) for k, band in enumerate(BANDS)], draws=300)
    exact = -sum(math.log(JOINTS[1].table[tuple(x)]) for x in SEQUENCES.table.tolist()) / 12
    assert likelihood.nats_per_token == pytest.approx(exact, rel=0.01)


def test_causal_evaluation_is_the_likelihood_of_all_but_the_first_token():
    """By the chain rule: -log p(x) less -log p(x_0), a token predicted, and no band."""
    (*_, likelihood) = measured(JointRack(JOINTS, causal=True), [BandRoute((0, 1, 2), (0.0, 1.0))], 4, causal=True)
    table = JOINTS[2].table
    exact = -sum(math.log(table[tuple(x)] / table[x[0]].sum()) for x in SEQUENCES.table.tolist())
    assert likelihood.nats_per_token == pytest.approx(exact / 9, abs=1e-9)
    assert (likelihood.tokens, likelihood.bands, likelihood.depth) == (9, (), 3)


@pytest.mark.parametrize("edges", [[0.0, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 1 / 3, 2 / 3, 1.0]])
def test_every_mask_fraction_is_served_once(edges):
    """On a grid and at the very edges just one route serves a fraction, the lower one at an edge."""
    routes = [BandRoute((k,), band) for k, band in enumerate(itertools.pairwise(edges))]
    for fraction in [*np.linspace(0, 1, 101), *edges, np.nextafter(0, 1), np.nextafter(1, 0)]:
        serving = [route.path[0] for route in routes if route.serves(float(fraction))]
        assert serving == [max(0, sum(fraction > edge for edge in edges) - 1)]


@pytest.mark.slow
def test_a_changed_stack_changes_its_own_band_and_no_other(tmp_path):
    """Of a banded rack the other bands stay as they were to the bit, and the bands add up before and after."""
    banded = run_tiny(tmp_path, {"trainer_mode": {"use": "banded", "cycles": 1}, "training.epochs_per_stack": 1})
    routes, directory = banded.plan.routes, banded.engine.files
    assert [route.path for route in routes] == [(0,), (1,), (2,)]
    (before,) = banded.result.likelihoods
    assert measure(banded, routes=routes) == [before]
    directory.write_stack(1, {name: 1.1 * tensor for name, tensor in directory.read_stack(1).items()})
    (after,) = measure(banded, routes=routes)
    assert [one == other for one, other in zip(before.bands, after.bands, strict=True)] == [True, False, True]
    for likelihood in (before, after):
        assert sum(part.nats_per_token for part in likelihood.bands) == pytest.approx(
            likelihood.nats_per_token, abs=1e-12
        )


def test_causal_evaluation_of_a_rack_is_a_loop_over_its_text(tmp_path):
    """Each depth's likelihood is the mean of the next tokens' cross entropies, sequence by sequence."""
    ran = run_tiny(tmp_path, {"objective": "clm", "rack.attention": "causal", "training.epochs_per_stack": 1})
    forward, split = ran.engine.forward, ran.setup.corpus.validation
    totals, predicted = [0.0] * 3, 0
    with torch.no_grad():
        for sample in range(len(split)):
            rows = split.rows(np.array([sample]))
            length = int(rows.scorable.sum())
            ids = torch.from_numpy(rows.tokens[0, :length].astype("int64")).to(forward.device)
            assert (rows.segments[0, :length] == 1).all()
            hidden = forward.placement.ends(0).embed_tokens(ids)[None]
            context = forward.placement.ends(0).context(torch.ones(1, length, device=forward.device))
            for index in range(3):
                hidden = forward.placement.stack(index)(hidden, context)
                logits = (
                    forward.placement.stack(index).norm(hidden)[0] @ forward.placement.ends(0).embed_tokens.weight.T
                )
                logits[:, 256] = -torch.inf
                totals[index] -= float(logits.log_softmax(-1)[range(length - 1), ids[1:]].sum())
            predicted += length - 1
    nats = [likelihood.nats_per_token for likelihood in ran.result.likelihoods]
    assert nats == pytest.approx([total / predicted for total in totals], abs=1e-5)
    assert ran.result.likelihoods[0].tokens == predicted


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mask_diffusion", "clm"])
def test_a_bound_that_is_no_number_is_an_error(tmp_path, objective):
    """The first stack and tensor that isn't finite is named; without one, the stack whose result isn't."""
    attention = {"rack.attention": "causal"} if objective == "clm" else {}
    ran = run_tiny(tmp_path, {"objective": objective, "training.steps_per_stack": 1, **attention})
    forward, causal = ran.engine.forward, objective == "clm"
    before = measure(ran, causal=causal)
    mlp, embedding = forward.placement.stack(1).layers[0].mlp, forward.placement.ends(0).embed_tokens.weight
    harms = (
        (
            mlp.down_proj.weight[2:3, 3:4],
            math.nan,
            r"stack 1, layers\.0\.mlp\.down_proj\.weight isn't finite: nan at \[2, 3\]",
        ),
        (mlp.up_proj.weight, 3e38, r"what leaves stack 1, whose weights are all finite, isn't finite: (-?inf|nan)"),
        (embedding[7:8, 5:6], math.nan, r"embed_tokens\.weight isn't finite: nan at \[7, 5\]"),
    )
    for weight, number, said in harms:
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(number * weight.sign() if math.isfinite(number) else torch.full_like(weight, number))
        with pytest.raises(StackwiseError, match=f"^there is no likelihood: {said}"):
            measure(ran, causal=causal)
        with torch.no_grad():
            weight.copy_(kept)
    assert measure(ran, causal=causal) == before


def test_tokens_without_bytes_have_no_bits_a_byte():
    """A text whose tokens stand for none of its bytes is an error, and not an infinite bound."""
    nothing = evolve(SEQUENCES, bytes=0)
    evaluation = Evaluation(nothing, mask_id=3, seed=1, draws=1)
    with pytest.raises(StackwiseError, match="stand for no bytes"):
        evaluate(JointRack(JOINTS), evaluation, routes=[BandRoute((0,), (0.0, 1.0))], exits={0})
