"""The samplers against exact distributions and hand-written loops, on predictors that are tables."""

import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise_core.engine.draws.draws import Stream, generator
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_sampling.gapped_text import GappedText
from stackwise_sampling.sampling import ORDERS, Sampling, blocks_of, go_on, unmask
from stackwise_sampling.sampling import sample as fill
from tests.joint import Joint

JOINT = Joint()
LENGTH, MASK = JOINT.length, JOINT.vocabulary
STATES = list(itertools.product(range(MASK + 1), repeat=LENGTH))
"""All texts with all masks."""
SAMPLES = 20_000


def conditionals() -> np.ndarray:
    """p(x_i | what isn't masked) float64 [states, L, V], 0 where it isn't masked."""
    table = np.zeros((len(STATES), LENGTH, MASK))
    for number, state in enumerate(STATES):
        masked = [i for i, token in enumerate(state) if token == MASK]
        seen = JOINT.table[tuple(slice(None) if token == MASK else token for token in state)]
        for place, i in enumerate(masked):
            marginal = seen.sum(axis=tuple(axis for axis in range(seen.ndim) if axis != place))
            table[number, i] = marginal / marginal.sum()
    return table


CONDITIONALS = conditionals()


class Exact:
    """Predicts with the conditionals of the joint distribution; counts what it was asked."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.logits = torch.from_numpy(np.log(np.pad(CONDITIONALS, ((0, 0), (0, 0), (0, 1))) + 1e-300)).float()
        self.logits[..., MASK] = 5.0  # a sampler that doesn't forbid the mask is found out

    def predict(self, inputs, segments, fraction, where):
        self.fractions.append(fraction)
        assert bool((segments == 1).all())
        assert bool((inputs.flatten()[where] == MASK).all())
        number = (inputs * (MASK + 1) ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
        return self.logits[number].flatten(0, 1)[where]


def texts(denoiser=None, given=(MASK,) * LENGTH, **how) -> tuple[np.ndarray, int]:
    """Finished texts [num, L] and the forward passes that they took."""
    given = np.array(given)
    steps = unmask(denoiser or Exact(), given, given == MASK, Sampling(**how), special_ids={MASK}, seq_len=LENGTH)
    *_, last = steps
    return last.ids.numpy(), last.passes


def by_enumeration(steps: int, start=(MASK,) * LENGTH) -> np.ndarray:
    """What the reverse process in so many steps gives every state, float64 [states]: all that may happen, added up."""
    numbers = {state: number for number, state in enumerate(STATES)}
    now = {start: 1.0}
    for step in range(steps):
        leaves = 1 / (steps - step)  # (t - s) / t
        after: dict[tuple[int, ...], float] = {}
        for state, p in now.items():
            options = [
                [(token, leaves * q) for token, q in enumerate(CONDITIONALS[numbers[state], i])] + [(MASK, 1 - leaves)]
                if token == MASK
                else [(token, 1.0)]
                for i, token in enumerate(state)
            ]
            for choice in itertools.product(*options):
                to = tuple(token for token, _ in choice)
                after[to] = after.get(to, 0.0) + p * math.prod(q for _, q in choice)
        now = {state: p for state, p in after.items() if p > 0}
    return np.array([now.get(state, 0.0) for state in STATES])


def surprise(found: np.ndarray, expected: np.ndarray) -> float:
    """By how many standard deviations chi-square exceeds its mean, cells that expect fewer than 5 put together.

    Args:
        found: texts [n, L]
        expected: probabilities [states]
    """
    counts = np.bincount((found * (MASK + 1) ** np.arange(LENGTH - 1, -1, -1)).sum(1), minlength=len(STATES))
    wanted = expected * len(found)
    rare = wanted < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    free = len(wanted) - 1
    chi_square = np.divide((counts - wanted) ** 2, wanted, out=np.zeros(len(wanted)), where=wanted > 0).sum()
    return float((chi_square - free) / math.sqrt(2 * free))


def joint_of_states() -> np.ndarray:
    return np.array([0.0 if MASK in state else JOINT.table[state] for state in STATES])


@pytest.fixture(scope="module")
def enumerated() -> dict[int, np.ndarray]:
    return {steps: by_enumeration(steps) for steps in (1, 2, 4)}


def test_the_enumeration_is_a_distribution(enumerated):
    """It adds up to one, ends without masks, differs from step to step, and nears the joint distribution."""
    joint = joint_of_states()
    off = [np.abs(enumerated[steps] - joint).sum() / 2 for steps in (1, 2, 4)]
    assert all(each.sum() == pytest.approx(1, abs=1e-12) for each in enumerated.values())
    assert off[0] > 0.3
    assert off == sorted(off, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_ancestral_sampling_has_the_distribution_of_its_steps(enumerated, steps):
    """Twenty thousand texts have the enumerated distribution of T steps, and not that of another T."""
    found, _ = texts(num=SAMPLES, steps=steps, seed=steps)
    assert surprise(found, enumerated[steps]) < 4
    for other in {1, 2, 4} - {steps}:
        assert surprise(found, enumerated[other]) > 30


@pytest.mark.slow
def test_ancestral_sampling_in_many_steps_is_the_joint_distribution():
    """Where two tokens hardly ever leave the mask together, texts come from p(x) itself; in one step they don't."""
    joint = joint_of_states()
    many, _ = texts(num=SAMPLES, steps=500, seed=5)
    assert surprise(many, joint) < 4
    assert surprise(texts(num=SAMPLES, steps=1, seed=5)[0], joint) > 100


@pytest.mark.slow
def test_ancestral_infilling_has_the_conditional_distribution():
    """Given two tokens, the others come from p(x | these)."""
    given = (MASK, 2, MASK, MASK, 0)
    joint = joint_of_states() * [state[1] == 2 and state[4] == 0 for state in STATES]
    found, _ = texts(given=given, num=SAMPLES, steps=500, seed=6)
    assert surprise(found, joint / joint.sum()) < 4
    assert surprise(texts(given=given, num=SAMPLES, steps=1, seed=6)[0], joint / joint.sum()) > 30


def test_blocks_of_one_token_are_the_chain_rule():
    """From left to right, one at a time, with all that follows masked: exact in as many steps as tokens."""
    found, passes = texts(num=SAMPLES, block=1, steps=LENGTH, seed=7)
    assert surprise(found, joint_of_states()) < 4
    assert passes == LENGTH


def test_a_step_that_fills_nothing_costs_nothing():
    """Of a thousand steps at most one for each token asks the network."""
    _, passes = texts(steps=1000, seed=8)
    assert passes <= LENGTH


def test_the_network_is_told_the_share_that_is_masked():
    """Random order: what is expected at the step's time; by certainty: what is. Given tokens count as seen."""
    given = (MASK, MASK, MASK, MASK, 0)
    exact = Exact()
    texts(exact, given, num=50, steps=4)
    assert exact.fractions == pytest.approx([0.8, 0.6, 0.4, 0.2])
    exact = Exact()
    texts(exact, given, order="margin", steps=2)
    assert exact.fractions == pytest.approx([0.8, 0.4])
    exact = Exact()
    texts(exact, given, order="margin", steps=4, block=2)  # what comes later is masked, and in view
    assert exact.fractions == pytest.approx([0.8, 0.6, 0.4, 0.2])


def rows_by_hand(order: str, steps: int, num: int, seed: int, temperature: float, top_p: float) -> list[list[int]]:
    """The texts of ``by_certainty``, position by position."""
    found = []
    for sample in range(num):
        rng = generator(seed, 0, Stream.SAMPLING, sample)
        x, left = [MASK] * LENGTH, list(range(LENGTH))
        for step in range(steps):
            count = LENGTH // steps + (step < LENGTH % steps)
            uniforms = dict(zip(left, rng.random(len(left)), strict=True))
            conditional = CONDITIONALS[STATES.index(tuple(x))]
            candidates, scores = {}, {}
            for i in left:
                p = conditional[i]
                candidates[i] = token_by_hand(p, uniforms[i], temperature, top_p)
                best = sorted(p, reverse=True)
                scores[i] = {
                    "confidence": p[candidates[i]],
                    "margin": best[0] - best[1],
                    "entropy": sum(each * math.log(each) for each in p),
                }[order]
            for i in sorted(left, key=lambda i: -scores[i])[:count]:
                x[i] = candidates[i]
            left = [i for i in left if x[i] == MASK]
        found.append(x)
    return found


def token_by_hand(p, uniform: float, temperature: float, top_p: float) -> int:
    if temperature == 0:
        return int(np.argmax(p))
    weights = {token: each ** (1 / temperature) for token, each in enumerate(p)}
    total = sum(weights.values())
    kept, reached = set(), 0.0
    for token in sorted(weights, key=lambda token: -weights[token]):
        if reached < top_p:
            kept.add(token)
        reached += weights[token] / total
    reached, aim = 0.0, uniform * sum(weights[token] for token in kept)
    for token in sorted(kept):
        reached += weights[token]
        if aim < reached:
            return token
    raise AssertionError


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 1.0), (1.3, 0.6)])
def test_orders_by_certainty_are_the_loop_by_hand(order, temperature, top_p):
    """For each order, temperature and nucleus the texts are those of a loop over positions."""
    for steps in (1, 2, 5):
        how = {"order": order, "steps": steps, "num": 20, "seed": 9, "temperature": temperature, "top_p": top_p}
        assert texts(**how)[0].tolist() == rows_by_hand(**how)


def test_orders_differ():
    """On the same randomness each order has texts of its own."""
    found = [texts(order=order, steps=3, num=200, seed=1)[0].tobytes() for order in ORDERS]
    assert len(set(found)) == len(ORDERS)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature):
    """One masked token comes from p^(1/temperature), normalised."""
    given = (0, 1, MASK, 2, 0)
    p = CONDITIONALS[STATES.index(given)][2] ** (1 / temperature)
    expected = np.zeros(len(STATES))
    for token in range(MASK):
        expected[STATES.index((0, 1, token, 2, 0))] = p[token] / p.sum()
    assert surprise(texts(given=given, num=6000, steps=1, temperature=temperature)[0], expected) < 4
    assert surprise(texts(given=given, num=6000, steps=1)[0], expected) > 20


@pytest.mark.slow
def test_a_nucleus_is_the_fewest_likeliest_tokens():
    """What lies beyond top_p never comes; what lies within keeps its proportions."""
    given = (0, 1, MASK, 2, 0)
    p = CONDITIONALS[STATES.index(given)][2]
    least = int(p.argmin())
    top_p = (1 - p[least]) * 0.999
    kept = np.where(np.arange(MASK) == least, 0, p)
    expected = np.zeros(len(STATES))
    for token in range(MASK):
        expected[STATES.index((0, 1, token, 2, 0))] = kept[token] / kept.sum()
    found, _ = texts(given=given, num=SAMPLES, steps=1, top_p=top_p)
    assert least not in found[:, 2]
    assert surprise(found, expected) < 4
    assert set(texts(given=given, num=50, steps=1, top_p=1e-9)[0][:, 2]) == {int(p.argmax())}


@pytest.mark.parametrize("order", ORDERS)
def test_a_text_is_the_same_in_whatever_company(order):
    """Text number n under a seed doesn't depend on how many there are; another seed has other texts."""
    many, few = (texts(order=order, num=num, steps=3, seed=4)[0] for num in (40, 7))
    assert np.array_equal(many[:7], few)
    assert not np.array_equal(texts(order=order, num=40, steps=3, seed=5)[0], many)


class Noise:
    """Predicts by a hash of all that is seen, and refuses what no rack would take."""

    vocabulary, seq_len = 7, 8
    special = frozenset({0, 5, 6})
    mask = 6

    def predict(self, inputs, segments, fraction, where):
        assert 0 < inputs.shape[1] <= self.seq_len
        assert 0 < fraction <= 1
        assert bool((inputs.flatten()[where] == self.mask).all())
        assert bool((segments.flatten()[where] == 1).all())
        seed = int((inputs * torch.arange(1, inputs.shape[1] + 1)).sum()) + len(where)
        return torch.randn(len(where), self.vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=120, deadline=None)
@given(
    row=st.lists(st.sampled_from([None, None, 0, 1, 2, 5]), min_size=1, max_size=30).filter(lambda row: None in row),
    order=st.sampled_from(ORDERS),
    steps=st.integers(1, 40),
    block=st.none() | st.integers(1, 8),
    num=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1e-300, 1.0]),
)
def test_whatever_is_asked(row, order, steps, block, num, temperature):
    """Given tokens never change, no mask or special token is put anywhere, and the steps are as many as were said."""
    missing = np.array([token is None for token in row])
    ids = np.array([Noise.mask if token is None else token for token in row])
    sampling = Sampling(order=order, steps=steps, block=block, num=num, temperature=temperature, seed=len(row))
    try:
        plan = blocks_of(missing, Noise.seq_len, sampling)
    except UsageError:
        assert steps < missing.sum()
        return
    masked = int(missing.sum()) * num
    seen = []
    for step in unmask(Noise(), ids, missing, sampling, special_ids=Noise.special, seq_len=Noise.seq_len):
        seen.append(step.number)
        filled = step.ids[step.rows, step.places]
        assert not set(filled.tolist()) & Noise.special
        assert missing[step.places.numpy()].all()
        masked -= len(step.rows)
        assert int((step.ids == Noise.mask).sum()) == masked
    assert masked == 0
    assert (step.ids.numpy()[:, ~missing] == ids[~missing]).all()
    expected = steps if order == "random" else min(steps, int(missing.sum()))
    if len(plan) < missing.sum():  # where each block is one token, further steps would fill nothing
        assert len(seen) == step.steps == sum(each.steps for each in plan) == expected
    assert step.passes <= step.steps


def test_blocks_are_filled_one_after_another():
    """No token of a later block is filled before all of an earlier one are, and the window never looks too far."""
    missing = np.ones(30, dtype=bool)
    sampling = Sampling(block=4, steps=30, seed=2)
    order = []
    for step in unmask(Noise(), np.full(30, 6), missing, sampling, special_ids=Noise.special, seq_len=8):
        order += step.places.tolist()
    assert [place // 4 for place in order] == sorted(place // 4 for place in range(30))
    assert order != sorted(order)


def test_predictions_that_are_no_numbers_are_refused():
    """A rack that diverged gets one message, at any temperature."""

    class Diverged:
        def predict(self, inputs, segments, fraction, where):
            return torch.full((len(where), 4), torch.nan)

    for temperature in (0.0, 1.0):
        with pytest.raises(StackwiseError, match="no numbers"):
            texts(Diverged(), temperature=temperature)


class Chain:
    """A causal rack of a first-order Markov chain, which may see no more than four tokens."""

    p = torch.tensor([[0.1, 0.7, 0.2, 0.0], [0.3, 0.3, 0.4, 0.0], [0.8, 0.1, 0.1, 0.0]])

    def predict(self, inputs, segments, fraction, where):
        assert inputs.shape[1] <= 4
        return torch.cat([self.p.log(), torch.zeros(1, 4)])[inputs.flatten()[where]]


def test_a_causal_rack_goes_on_from_left_to_right():
    """Each token is drawn given the one before it, also beyond what is seen at once; a pass for each."""
    given = np.array([2, 0] + [3] * 6)
    *_, last = go_on(Chain(), given, given == 3, Sampling(num=4000, seed=1), special_ids={3}, seq_len=4)
    found = last.ids.numpy()
    assert last.passes == last.steps == 6
    assert (found[:, :2] == [2, 0]).all()
    for before in range(3):
        following = found[:, 2:][found[:, 1:-1] == before]
        shares = np.bincount(following, minlength=4) / len(following)
        assert shares == pytest.approx(Chain.p[before].numpy(), abs=0.03)


def test_a_causal_rack_writes_after_text_only():
    """What comes right after a special token is predicted nowhere else, and so isn't sampled either."""
    tokenizer = load_tokenizer("bytes", mask_token=None)
    for last, refused in ((65, False), (tokenizer.pad_id, True)):
        ids = np.array([65, 65, last, tokenizer.mask_id])
        text = GappedText(("A", 1), (3, 1), ids, ids == tokenizer.mask_id, tokenizer)
        expected = pytest.raises(UsageError, match="ends with the special token") if refused else nullcontext()
        with expected:
            fill(Chain(), text, Sampling(), seq_len=4, causal=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"order": "best"}, "order 'best': expected one of random, confidence"),
        ({"steps": 0}, "steps 0: expected 1 or more"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": -1.0}, "temperature -1.0: expected 0 or more"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"block": 1, "steps": 3}, "steps 3: expected at least 5"),
    ],
)
def test_what_cannot_be_is_refused(how, message):
    """Each setting that makes no sense gets a message that names it."""
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        texts(**how)
