import pytest
import torch
from torch import nn

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.loop.weight_update import StepNumbers, norm_of, update_weights

TRAINING = TrainingConfig(max_grad_norm=0.5)
GOOD, BAD = torch.tensor(True), torch.tensor(False)


def made(*, fused: bool) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Two weights with gradients, in two groups, which have moved once already."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 0.1}, {"params": [weights[1]], "lr": 0.2}]
    optimizer = torch.optim.AdamW(groups, fused=fused)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(3, 4, generator=generator)
        if not optimizer.state:
            optimizer.step()
    return weights, optimizer


def norm(weights: list[nn.Parameter]) -> torch.Tensor:
    return norm_of([torch.linalg.vector_norm(each.grad) for each in weights], torch.device("cpu"))


@pytest.mark.parametrize("fused", [True, False])
def test_clipped_weights_move_as_torch_clips_and_moves_them(fused):
    """The same weights, moments and counts as clip_grad_norm_ and a step of a plain AdamW give."""
    weights, optimizer = made(fused=fused)
    theirs, plain = made(fused=False)
    assert norm(weights) > TRAINING.max_grad_norm
    update_weights(optimizer, optimizer.param_groups, norm(weights), GOOD, TRAINING)
    nn.utils.clip_grad_norm_(theirs, TRAINING.max_grad_norm)
    plain.step()
    for ours, other in zip(weights, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)
        assert optimizer.state[ours]["step"] == plain.state[other]["step"] == 2
        torch.testing.assert_close(optimizer.state[ours]["exp_avg"], plain.state[other]["exp_avg"])


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_changes_nothing(fused):
    """Neither weights nor moments nor the count of steps, though gradients aren't finite."""
    weights, optimizer = made(fused=fused)
    before = [each.detach().clone() for each in weights]
    moments = [{key: value.clone() for key, value in optimizer.state[each].items()} for each in weights]
    weights[1].grad[0, 0] = torch.nan
    update_weights(optimizer, optimizer.param_groups, norm(weights), BAD, TRAINING)
    for weight, was, state in zip(weights, before, moments, strict=True):
        assert torch.equal(weight, was)
        assert all(torch.equal(optimizer.state[weight][key], value) for key, value in state.items())


def test_other_groups_of_an_optimizer_stay():
    """Groups that aren't named neither move nor count a step, and all are there afterwards."""
    weights, optimizer = made(fused=True)
    before = weights[1].detach().clone()
    update_weights(optimizer, optimizer.param_groups[:1], norm(weights[:1]), GOOD, TRAINING)
    assert torch.equal(weights[1], before)
    assert [float(optimizer.state[each]["step"]) for each in weights] == [2, 1]
    assert len(optimizer.param_groups) == 2


def test_gradients_below_the_bound_are_left_as_they_are():
    """To the bit; and without a bound any are."""
    for training in (TrainingConfig(max_grad_norm=1e6), TrainingConfig(max_grad_norm=0.0)):
        weights, optimizer = made(fused=True)
        theirs, plain = made(fused=True)
        update_weights(optimizer, optimizer.param_groups, norm(weights), GOOD, training)
        plain.step()
        assert all(torch.equal(ours, other) for ours, other in zip(weights, theirs, strict=True))


@pytest.mark.parametrize(
    ("loss", "grad_norm", "finite"), [(1.0, 2.0, True), (torch.nan, 2.0, False), (1.0, torch.inf, False)]
)
def test_a_step_counts_if_loss_and_gradient_are_finite(loss, grad_norm, finite):
    """The norm of no gradients is nothing."""
    numbers = StepNumbers(torch.tensor(loss, dtype=torch.float64), torch.tensor(grad_norm), torch.tensor([grad_norm]))
    assert bool(numbers.are_finite) is finite
    assert numbers.together.tolist() == pytest.approx([loss, grad_norm, grad_norm], nan_ok=True)
    assert norm_of([], torch.device("cpu")) == 0
