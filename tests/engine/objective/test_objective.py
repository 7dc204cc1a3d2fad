import itertools
import math

import numpy as np
import pytest
import torch

from stackwise_core import load_rack
from stackwise_core.builtin.options import MaskDiffusionOptions
from stackwise_core.config.errors import ConfigUnavailable
from stackwise_core.engine.draws.draws import Draws
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.evaluation.evaluate import count_weights
from stackwise_core.engine.events.events import Validated
from stackwise_core.engine.objective.mask_diffusion import MaskDiffusion
from stackwise_core.engine.objective.objective import PhaseLoss
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.objective import Objective
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Cosine, Exponential, Linear
from tests.joint import Joint
from tests.tiny import run_tiny, tiny_config

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Linear, Exponential, Cosine])
def test_expected_loss_is_the_exact_nelbo(kind):
    """Averaged over progress and masks, the loss is the enumerated bound, and with exact conditionals -log p(x)."""
    objective = PhaseLoss(OBJECTIVE, noise(kind), "nelbo", (0.0, 1.0))
    for x in SEQUENCES:
        loss = mean_over((0.0, 1.0), lambda s, x=x: expected_loss(objective, x, s))
        assert loss * len(x) == pytest.approx(JOINT.exact_nelbo(x), abs=1e-9)
        assert loss * len(x) == pytest.approx(-math.log(JOINT.table[x]), abs=1e-9)


@pytest.mark.slow
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


@pytest.mark.slow
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


class Odd(Objective):
    """Squares cross entropies, and counts only the tokens at odd places."""

    def losses(self, logits, targets):
        return super().losses(logits, targets) ** 2

    def weights(self, predicted):
        return predicted.weights * (predicted.places % 2)

    def count(self, predicted):
        return int((predicted.places % 2).sum())


def test_an_objective_decides_losses_weights_and_count():
    """Each of its methods is in the loss; by hand, for two passes of a step."""
    loss = PhaseLoss(Odd(MaskDiffusionOptions()), noise(Linear), "nelbo", (0.0, 1.0))
    draws = [draws_of((0, 1, 2, 0), [0, 1, 3], 0.5), draws_of((2, 2, 1, 0), [1, 2], 0.25)]
    step = [loss.predicted(each) for each in draws]
    logits = [torch.randn(len(each.targets), 3, dtype=torch.float64) for each in step]
    total = sum(
        loss.weighted_sum(loss.losses(of_pass, each.targets), each) for of_pass, each in zip(logits, step, strict=True)
    )
    logs = [-of_pass.log_softmax(1) for of_pass in logits]
    by_hand = 2 * (logs[0][1, 1] ** 2 + logs[0][2, 0] ** 2) + 4 * logs[1][0, 2] ** 2
    assert float(total) == pytest.approx(float(by_hand))
    assert loss.normaliser(step) == 3


def test_what_is_predicted_is_told_by_token():
    """Sequence, place and mask fraction of each token, and its weight in the phase."""
    one, other = draws_of((0, 1, 2), [0, 2], 0.5), draws_of((0, 1, 2), [1], 0.25)
    both = Draws(
        samples=np.array([0, 1]),
        inputs=torch.cat([one.inputs, other.inputs]),
        segments=torch.ones(2, 3),
        progress=torch.cat([one.progress, other.progress]),
        fraction=torch.cat([one.progress, other.progress]),
        masked=torch.tensor([0, 2, 4]),
        targets=torch.tensor([0, 2, 1]),
        scored=6,
    )
    predicted = PhaseLoss(OBJECTIVE, noise(Linear), "nelbo", (0.0, 1.0)).predicted(both)
    assert predicted.sequences.tolist() == [0, 0, 1]
    assert predicted.places.tolist() == [0, 2, 1]
    assert predicted.fractions.tolist() == [0.5, 0.5, 0.25]
    assert predicted.weights.tolist() == pytest.approx([2, 2, 4])
    assert (predicted.targets.tolist(), predicted.scored, predicted.weighting) == ([0, 2, 1], 6, "nelbo")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("losses", lambda self, logits, targets: torch.tensor(1.0)),
        ("losses", lambda self, logits, targets: 1.0),
        ("weights", lambda self, predicted: torch.ones(len(predicted.targets) + 1)),
    ],
)
def test_an_objective_that_breaks_its_contract_is_named(method, given):
    """What isn't one number a token ends the run with the objective's name."""
    broken = type("Broken", (Objective,), {method: given})(MaskDiffusionOptions())
    loss = PhaseLoss(broken, noise(Linear), "mean", (0.0, 1.0))
    predicted = loss.predicted(draws_of((0, 1, 2), [0, 2], 0.5))
    with pytest.raises(ContractError, match=rf"^Broken: {method}\(\) gave .* for each of 2 predicted tokens"):
        loss.weighted_sum(loss.losses(torch.zeros(2, 3), predicted.targets), predicted)


TWICE = """
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.objective import Objective, ObjectiveOptions

@hookimpl
def objective():
    return [
        Implementation("twice", "Of masked tokens", "twice:Twice", "twice:ObjectiveOptions"),
        Implementation("twice_next", "Of the next token", "twice:Twice", "twice:Next"),
        Implementation("plain", "Options of another kind", "twice:Twice", "twice:Plain"),
    ]

@frozen
class Next(ObjectiveOptions):
    causal = True
    weightings = ("mean",)

@frozen
class Plain:
    pass

class Twice(Objective):
    def losses(self, logits, targets):
        return 2 * super().losses(logits, targets)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), [("mask_diffusion", "twice"), ("clm", "twice_next")])
def test_a_run_trains_and_validates_on_its_objective(tmp_path, install, ours, theirs):
    """A loss of twice the cross entropies is twice as large; what evaluation measures is cross entropies still.

    The finished run is measured where the objective isn't installed any more.
    """
    install("stackwise-twice", {"twice": TWICE}, {"twice": "twice"})
    changes = {"training.steps_per_stack": 1, "evaluation.every": 1, "training.block_lr": 0.0, "rack.stacks": 2}
    changes |= {"training.embedding_lr": 0.0}
    plain, twice = (run_tiny(tmp_path / name, changes | {"objective": name}) for name in (ours, theirs))
    assert twice.losses == pytest.approx([2 * loss for loss in plain.losses], rel=1e-6)
    validated = [[event.loss for event in ran.events if isinstance(event, Validated)] for ran in (plain, twice)]
    assert validated[1] == pytest.approx([2 * loss for loss in validated[0]], rel=1e-6)
    assert twice.result.likelihoods == plain.result.likelihoods

    rack = load_rack(twice.result.directory, plugins=["no:stackwise-twice"])
    assert tuple(rack.evaluate()) == twice.result.likelihoods
    assert rack.causal == (ours == "clm")
    assert rack.spec.attention == ("causal" if ours == "clm" else "bidirectional")


def test_options_of_another_kind_are_refused(tmp_path, install):
    """Options that don't say what the objective is are the plugin's fault, told before anything runs."""
    install("stackwise-twice", {"twice": TWICE}, {"twice": "twice"})
    with pytest.raises(ConfigUnavailable, match=r"twice:Plain is no subclass of .*ObjectiveOptions"):
        tiny_config(tmp_path, {"objective": "plain"})
