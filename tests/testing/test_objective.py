"""Each check of ObjectiveContract refuses an objective that is wrong in just that."""

import numpy as np
import pytest
import torch
from attrs import frozen
from torch.nn.functional import cross_entropy

from stackwise_core.builtin.options import CLMOptions, MaskDiffusionOptions, MLMOptions
from stackwise_core.engine.objective.clm import CLM
from stackwise_core.engine.objective.mask_diffusion import MaskDiffusion
from stackwise_core.engine.objective.mlm import MLM
from stackwise_core.interfaces.objective import Objective, ObjectiveOptions
from stackwise_core.testing.objective import ObjectiveContract


class TestMaskDiffusion(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return MaskDiffusion(MaskDiffusionOptions())


class TestMLM(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return MLM(MLMOptions(random=0.4, keep=0.3))


class TestCLM(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return CLM(CLMOptions())


@frozen
class MeanOptions(ObjectiveOptions):
    weightings = ("mean",)


@frozen
class CausalBoundOptions(ObjectiveOptions):
    causal = True


def made(options=MeanOptions, **members):
    """An objective with other members."""
    return type("Made", (Objective,), members)(options())


def focal(self, logits, targets):
    losses = cross_entropy(logits, targets, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses


def by_the_mean(self, logits, targets):
    losses = cross_entropy(logits, targets, reduction="none")
    return losses / losses.mean() if len(losses) else losses


def less_confident(self, logits, targets):
    """An entropy whose terms of 0 log 0 are cut out of the sum, and not out of the gradient."""
    logs = logits.log_softmax(1)
    terms = torch.where(logs.isfinite(), logs * logs.exp(), 0)
    return cross_entropy(logits, targets, reduction="none") + 0.1 * terms.sum(1)


def noisy(self, logits, targets):
    return cross_entropy(logits, targets, reduction="none") * (1 + torch.rand(()))


def corrupting(change):
    """An objective whose ``corrupt`` does this to inputs, tokens and mask."""

    def corrupt(self, inputs, tokens, mask, *, mask_id, vocab_size, rng):
        change(inputs, tokens, mask, vocab_size)

    return made(corrupt=corrupt)


def by_chance(inputs, tokens, mask, vocab_size):
    inputs[mask] = np.random.randint(vocab_size, size=int(mask.sum()))


WRONG = {
    "no masks, and a bound": ("test_its_options_say_what_it_is", made(CausalBoundOptions)),
    "a sum": ("test_each_token_has_a_loss", made(losses=lambda self, logits, targets: cross_entropy(logits, targets))),
    "smoothed over the mask token": (
        "test_each_token_has_a_loss",
        made(losses=lambda self, logits, targets: -logits.log_softmax(1).mean(1)),
    ),
    "the others": ("test_a_token_s_loss_is_its_own", made(losses=by_the_mean)),
    "chance": ("test_equal_calls_give_equal_losses", made(losses=noisy)),
    "unlearning": (
        "test_the_gradient_leads_to_the_targets",
        made(losses=lambda self, logits, targets: -cross_entropy(logits, targets, reduction="none")),
    ),
    "a gradient that isn't finite": (
        "test_the_gradient_leads_to_the_targets",
        made(losses=less_confident),
    ),
    "weights by sequence": (
        "test_weights_are_numbers_of_tokens",
        made(weights=lambda self, predicted: torch.ones(int(predicted.sequences.max()) + 1)),
    ),
    "weights below 0": ("test_weights_are_numbers_of_tokens", made(weights=lambda self, predicted: -predicted.weights)),
    "a mean of its pass": (
        "test_a_step_may_be_cut_anywhere",
        made(weights=lambda self, predicted: predicted.weights / len(predicted.weights), count=lambda self, _: 1),
    ),
    "a count of passes": ("test_a_step_may_be_cut_anywhere", made(count=lambda self, predicted: 1)),
    "focal, and a bound": ("test_a_bound_is_not_below_the_bound", made(ObjectiveOptions, losses=focal)),
    "the unmasked": (
        "test_only_masked_positions_are_corrupted",
        corrupting(lambda inputs, tokens, mask, vocab_size: inputs.fill(0)),
    ),
    "no id": (
        "test_only_masked_positions_are_corrupted",
        corrupting(lambda inputs, tokens, mask, vocab_size: inputs.__setitem__(mask, vocab_size)),
    ),
    "the text": (
        "test_only_masked_positions_are_corrupted",
        corrupting(lambda inputs, tokens, mask, vocab_size: tokens.fill(0)),
    ),
    "chance in the input": (
        "test_corruption_takes_randomness_from_its_generator_only",
        corrupting(by_chance),
    ),
}


class TestFocal(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return made(losses=focal)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_objectives_are_refused(what, refuses):
    """Each wrong objective fails the check that is about it."""
    check, objective = WRONG[what]
    refuses(ObjectiveContract(), check, RuntimeError, objective=objective)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(ObjectiveContract, {check for check, _ in WRONG.values()})
