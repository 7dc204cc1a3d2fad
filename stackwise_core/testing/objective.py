"""Contract of every objective."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stackwise_core.interfaces.objective import Objective, ObjectiveOptions, Predicted, Weighting

VOCABULARY, MASK, TOKENS = 11, 10, 12
"""Ids, the mask token's among them, and tokens a sequence."""
COUNTS = (2, 5, 0, 7)
"""Predicted tokens of some sequences."""


def logits_of(count: int, seed: int = 0) -> Tensor:
    """Return logits [count, V] as a rack has them: fp32, the mask token's -inf."""
    logits = 2 * torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits[:, MASK] = -torch.inf
    return logits


def targets_of(count: int) -> Tensor:
    """Return ids [count], never the mask token."""
    return torch.arange(count) * 3 % MASK


def pass_of(objective: Objective, weighting: Weighting, rows: range = range(len(COUNTS))) -> Predicted:
    """Return a forward pass with some of the sequences, under a mask schedule f(s) = s."""
    found = [(row, place) for row in rows for place in range(1, COUNTS[row] + 1)]
    numbers = torch.tensor([row for row, _ in found], dtype=torch.int64)
    places = torch.tensor([place for _, place in found], dtype=torch.int64)
    causal = objective.options.causal
    fractions = torch.zeros(len(found), dtype=torch.float64) if causal else (numbers + 1.0).double() / 5
    return Predicted(
        targets=(5 * numbers + places) % MASK,
        sequences=numbers - rows.start,
        places=places,
        fractions=fractions,
        weighting=weighting,
        weights=1 / fractions if weighting == "nelbo" else torch.ones_like(fractions),
        scored=len(found) if causal else TOKENS * len(rows),
    )


class ObjectiveContract:
    """Subclass it and provide the fixture ``objective``."""

    @pytest.fixture
    def objective(self) -> Objective:
        """The objective to test."""
        raise NotImplementedError("the subclass provides the fixture `objective`")

    def test_its_options_say_what_it_is(self, objective: Objective) -> None:
        """Its options subclass ObjectiveOptions and name existing weightings; without masks, ``mean`` only."""
        options = objective.options
        assert isinstance(options, ObjectiveOptions)
        assert isinstance(options.causal, bool)
        assert options.weightings
        assert set(options.weightings) <= set(get_args(Weighting))
        assert not options.causal or options.weightings == ("mean",)

    def test_each_token_has_a_loss(self, objective: Objective) -> None:
        """A finite one, in the logits' format or fp32 at least; none for none."""
        for count in (0, 1, 7):
            for dtype in (torch.float32, torch.float64):
                losses = objective.losses(logits_of(count).to(dtype), targets_of(count))
                assert losses.shape == (count,)
                assert losses.dtype in (torch.float32, torch.float64)
                assert losses.isfinite().all()

    def test_a_token_s_loss_is_its_own(self, objective: Objective) -> None:
        """It is the same alone as among others, or it would depend on how a step is cut."""
        logits, targets = logits_of(7).double(), targets_of(7)
        alone = torch.cat([objective.losses(logits[at : at + 1], targets[at : at + 1]) for at in range(7)])
        torch.testing.assert_close(objective.losses(logits, targets), alone, rtol=1e-9, atol=1e-12)

    def test_equal_calls_give_equal_losses(self, objective: Objective) -> None:
        """Equal calls give equal bits, whatever other generators gave and whatever was called before."""
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            found.append(objective.losses(logits_of(7), targets_of(7)))
        assert torch.equal(*found)

    def test_the_gradient_leads_to_the_targets(self, objective: Objective) -> None:
        """Descent along the gradient makes the targets likelier, also with the mask token's logit at -inf."""
        logits, targets = logits_of(7), targets_of(7)
        for _ in range(300):
            logits = logits.detach().requires_grad_()
            objective.losses(logits, targets).sum().backward()
            assert logits.grad is not None
            gradient = logits.grad[:, :MASK]
            assert gradient.isfinite().all()
            logits = logits.detach()
            logits[:, :MASK] -= gradient
        assert logits.argmax(dim=1).tolist() == targets.tolist()

    def test_weights_are_numbers_of_tokens(self, objective: Objective) -> None:
        """One for each predicted token, finite and not below 0, some of them above; none for none."""
        for weighting in objective.options.weightings:
            predicted = pass_of(objective, weighting)
            weights = objective.weights(predicted)
            assert weights.shape == predicted.targets.shape
            assert ((weights >= 0) & weights.isfinite()).all()
            assert (weights > 0).any()
            assert objective.weights(pass_of(objective, weighting, range(2, 3))).shape == (0,)

    def test_a_step_may_be_cut_anywhere(self, objective: Objective) -> None:
        """The sums of weights and counts are the same in one forward pass as in two."""
        for weighting in objective.options.weightings:
            whole = pass_of(objective, weighting)
            parts = [pass_of(objective, weighting, rows) for rows in (range(1), range(1, 4))]
            together = sum(float(objective.weights(part).sum()) for part in parts)
            assert float(objective.weights(whole).sum()) == pytest.approx(together, rel=1e-9)
            assert objective.count(whole) > 0
            assert objective.count(whole) == pytest.approx(sum(objective.count(part) for part in parts), rel=1e-9)

    def test_a_bound_is_not_below_the_bound(self, objective: Objective) -> None:
        """The ``nelbo`` loss is at least the cross entropies under the phase's weights."""
        if "nelbo" not in objective.options.weightings:
            return
        for seed in range(5):
            predicted = pass_of(objective, "nelbo")
            logits = logits_of(len(predicted.targets), seed).double()
            cross_entropies = cross_entropy(logits, predicted.targets, reduction="none")
            bound = float((predicted.weights * cross_entropies).sum()) / predicted.scored
            losses = objective.losses(logits, predicted.targets)
            loss = float((objective.weights(predicted) * losses).sum()) / objective.count(predicted)
            assert loss >= bound - 1e-9

    def test_only_masked_positions_are_corrupted(self, objective: Objective) -> None:
        """Corrupted positions are masked ones and get existing ids; the text and the mask don't change."""
        tokens, mask = np.arange(200, dtype=np.int32) % MASK, np.arange(200) % 3 == 0
        before = np.where(mask, MASK, tokens).astype(np.int64)
        inputs, own, masked = before.copy(), tokens.copy(), mask.copy()
        rng = np.random.default_rng(0)
        objective.corrupt(inputs, own, masked, mask_id=MASK, vocab_size=VOCABULARY, rng=rng)
        assert (inputs[~mask] == before[~mask]).all()
        assert ((inputs >= 0) & (inputs < VOCABULARY)).all()
        assert (own == tokens).all()
        assert (masked == mask).all()

    def test_corruption_takes_randomness_from_its_generator_only(self, objective: Objective) -> None:
        """Equal generators give equal inputs, whatever was drawn elsewhere."""
        tokens, mask, found = np.arange(200, dtype=np.int32) % MASK, np.ones(200, dtype=bool), []
        for seed in (1, 2):
            np.random.seed(seed)
            torch.manual_seed(seed)
            inputs = np.full(200, MASK, dtype=np.int64)
            rng = np.random.default_rng(5)
            objective.corrupt(inputs, tokens, mask, mask_id=MASK, vocab_size=VOCABULARY, rng=rng)
            found.append(inputs)
        assert (found[0] == found[1]).all()
