import itertools
import math

import numpy as np
import pytest
import torch

from stackwise_core.builtin.options import MaskDiffusionOptions
from stackwise_core.data.draws import Draws
from stackwise_core.data.noise import Noise
from stackwise_core.inference.evaluate import count_weights
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.training.objective import PhaseLoss
from stackwise_core.training.objectives.mask_diffusion import MaskDiffusion
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Cosine, Exponential, Linear
from tests.joint import Joint

JOINT = Joint()
OBJECTIVE = MaskDiffusion(MaskDiffusionOptions())
SEQUENCES = list(itertools.islice(JOINT.sequences(), 0, None, 40))


def noise(kind: type[MaskSchedule], low: float = 0.0, high: float = 1.0) -> Noise:
    return Noise(kind(RangeOptions(min_fraction=low, max_fraction=high)))


def draws_of(x, masked, progress: float) -> Draws:
    """A batch of one sequence with these masked positions."""
    masked = list(masked)
    inputs = torch.tensor([[-1 if i in masked else token for i, token in enumerate(x)]])
    return Draws(
        samples=np.array([0]),
        inputs=inputs,
        segments=torch.ones_like(inputs),
        progress=torch.tensor([progress], dtype=torch.float64),
        fraction=torch.tensor([math.nan], dtype=torch.float64),
        masked=torch.tensor(masked),
        targets=torch.tensor([x[i] for i in masked]),
        scored=len(x),
    )


def expected_loss(objective: PhaseLoss, x, progress: float) -> float:
    """The mean of the objective's loss over all masks that independent masking can give, exactly."""
    fraction = float(objective.noise.fraction(torch.tensor(progress, dtype=torch.float64)))
    total = 0.0
    for masked in JOINT.subsets():
        probability = fraction ** len(masked) * (1 - fraction) ** (len(x) - len(masked))
        predicted = objective.predicted(draws_of(x, masked, progress))
        loss = objective.weighted_sum(torch.from_numpy(JOINT.cross_entropies(x, masked)), predicted)
        total += probability * float(loss) / objective.normaliser([predicted])
    return total


def mean_over(stretch: tuple[float, float], function) -> float:
    """The mean of a smooth function over an interval, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    low, high = stretch
    return sum(w / 2 * function(low + (node + 1) / 2 * (high - low)) for node, w in zip(nodes, weights, strict=True))


@pytest.mark.parametrize("kind", [Linear, Exponential, Cosine])
def test_expected_loss_is_the_exact_nelbo(kind):
    """Averaged over progress and masks, the loss is the enumerated bound, and with exact conditionals -log p(x)."""
    objective = PhaseLoss(OBJECTIVE, noise(kind), "nelbo", (0.0, 1.0))
    for x in SEQUENCES:
        loss = mean_over((0.0, 1.0), lambda s, x=x: expected_loss(objective, x, s))
        assert loss * len(x) == pytest.approx(JOINT.exact_nelbo(x), abs=1e-9)
        assert loss * len(x) == pytest.approx(-math.log(JOINT.table[x]), abs=1e-9)


@pytest.mark.parametrize("kind", [Linear, Exponential, Cosine])
def test_slices_of_progress_add_up(kind):
    """Losses over slices of the progress, as the phases of over = "both" have them, add up to the whole."""
    x, ends = SEQUENCES[1], [0.0, 0.2, 0.7, 1.0]
    total = sum(
        mean_over(
            stretch, lambda s, stretch=stretch: expected_loss(PhaseLoss(OBJECTIVE, noise(kind), "nelbo", stretch), x, s)
        )
        for stretch in itertools.pairwise(ends)
    )
    assert total * len(x) == pytest.approx(-math.log(JOINT.table[x]), abs=1e-9)


@pytest.mark.parametrize("kind", [Linear, Exponential, Cosine])
def test_band_of_a_schedule_is_the_band_by_counts(kind):
    """A schedule from 0.15 to 0.9 gives that band's share of the bound, as the incomplete beta functions have it."""
    x, band = SEQUENCES[2], (0.15, 0.9)
    objective = PhaseLoss(OBJECTIVE, noise(kind, *band), "nelbo", (0.0, 1.0))
    by_counts = 0.0
    weights = count_weights(len(x), band)
    for masked in JOINT.subsets():
        share = weights[len(masked) - 1] / math.comb(len(x), len(masked))
        by_counts += share * JOINT.cross_entropies(x, masked).mean()
    loss = mean_over((0.0, 1.0), lambda s: expected_loss(objective, x, s))
    assert loss * len(x) == pytest.approx(by_counts, abs=1e-9)
    assert by_counts < JOINT.exact_nelbo(x)


def test_uniform_predictor_costs_the_logarithm_of_the_vocabulary():
    """A predictor that knows nothing has the bound L ln V whatever the sequence."""
    objective, length, vocabulary = PhaseLoss(OBJECTIVE, noise(Linear), "nelbo", (0.0, 1.0)), 5, 3

    def loss(s: float) -> float:
        total = 0.0
        for size in range(1, length + 1):
            predicted = objective.predicted(draws_of((0,) * length, range(size), s))
            ways = math.comb(length, size) * s**size * (1 - s) ** (length - size)
            ce = torch.full((size,), math.log(vocabulary), dtype=torch.float64)
            total += ways * float(objective.weighted_sum(ce, predicted)) / objective.normaliser([predicted])
        return total

    assert length * mean_over((0.0, 1.0), loss) == pytest.approx(length * math.log(vocabulary), abs=1e-9)


def test_mean_weighting_is_the_mean_over_all_masked_tokens_of_a_step():
    """However the step's batches are cut, each masked token counts once."""
    objective = PhaseLoss(OBJECTIVE, Noise(Constant(ConstantOptions(0.5))), "mean", (0.0, 0.0))
    step = [objective.predicted(draws_of((0, 1, 2), masked, 0.0)) for masked in ([0, 1, 2], [1])]
    losses = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])]
    total = sum(objective.weighted_sum(ce, predicted) for ce, predicted in zip(losses, step, strict=True))
    assert float(total) / objective.normaliser(step) == 4.0


def test_weights_go_to_their_own_sequences():
    """In a batch each sequence's masked tokens are weighed by its own progress."""
    x = (0, 1, 2)
    one, other = draws_of(x, [0, 2], 0.5), draws_of(x, [1], 0.25)
    both = Draws(
        samples=np.array([0, 1]),
        inputs=torch.cat([one.inputs, other.inputs]),
        segments=torch.ones(2, 3),
        progress=torch.cat([one.progress, other.progress]),
        fraction=torch.cat([one.fraction, other.fraction]),
        masked=torch.tensor([0, 2, 4]),
        targets=torch.tensor([0, 2, 1]),
        scored=6,
    )
    objective = PhaseLoss(OBJECTIVE, noise(Linear), "nelbo", (0.0, 1.0))
    predicted = objective.predicted(both)
    assert float(objective.weighted_sum(torch.tensor([1.0, 1.0, 1.0]), predicted)) == pytest.approx(2 * 2 + 1 * 4)
