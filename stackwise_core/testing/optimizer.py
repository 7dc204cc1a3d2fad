"""Contract that every optimizer must hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stackwise_core.engine.loop.optimizer_state import check_optimizer_state, load_optimizer_state, optimizer_state
from stackwise_core.interfaces.optimizer import Optimizer

WIDTH = 64
"""Width of a square matrix: 4096 weights, from which on optimizers in 8 bits use them."""


def parameters(seed: int = 0) -> list[nn.Parameter]:
    """Return a matrix and a vector."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((WIDTH, WIDTH), (WIDTH,))]


def groups_of(weights: list[nn.Parameter], lr: float = 0.01, weight_decay: float = 0.0) -> list[dict[str, object]]:
    """Return a group for each weight, as the engine makes them."""
    return [{"params": [weight], "lr": lr, "weight_decay": weight_decay} for weight in weights]


def take_steps(made: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    """Take steps with gradients that depend on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        made.step()
        made.zero_grad(set_to_none=True)


class OptimizerContract:
    """Contract of an optimizer: subclass it and provide the fixture ``optimizer``."""

    @pytest.fixture
    def optimizer(self) -> Optimizer:
        """Return the optimizer to test."""
        raise NotImplementedError("the subclass provides the fixture `optimizer`")

    def test_it_minimises(self, optimizer: Optimizer) -> None:
        """The distance to a target falls to less than half within fifty steps."""
        weights, target = parameters(), parameters(1)
        made = optimizer.make(groups_of(weights, lr=0.05))

        def distance() -> Tensor:
            pairs = zip(weights, target, strict=True)
            return torch.stack([((weight - wanted.detach()) ** 2).sum() for weight, wanted in pairs]).sum()

        first = float(distance().detach())
        for _ in range(50):
            made.zero_grad(set_to_none=True)
            distance().backward()
            made.step()
        assert float(distance()) < first / 2

    def test_groups_are_kept(self, optimizer: Optimizer) -> None:
        """Its groups are those that it was given, in their order, with their learning rates."""
        weights = parameters()
        groups = groups_of(weights)
        groups[1]["lr"] = 0.5
        made = optimizer.make(groups)
        kept = [([id(each) for each in group["params"]], group["lr"]) for group in made.param_groups]
        assert kept == [([id(weights[0])], 0.01), ([id(weights[1])], 0.5)]

    def test_a_learning_rate_that_is_set_later_is_heard(self, optimizer: Optimizer) -> None:
        """The engine sets each step's; at 0 nothing changes."""
        weights = parameters()
        made = optimizer.make(groups_of(weights))
        for group in made.param_groups:
            group["lr"] = 0.0
        before = [weight.detach().clone() for weight in weights]
        take_steps(made, weights, range(1))
        assert all(torch.equal(now, then) for now, then in zip(weights, before, strict=True))
        made.param_groups[1]["lr"] = 0.01
        take_steps(made, weights, range(1, 2))
        assert torch.equal(weights[0], before[0])
        assert not torch.equal(weights[1], before[1])

    def test_weight_decay_is_heard(self, optimizer: Optimizer) -> None:
        """Without a gradient a group that decays shrinks, and one that doesn't stays."""
        weights = parameters()
        groups = groups_of(weights)
        groups[0]["weight_decay"] = 0.5
        made = optimizer.make(groups)
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        made.step()
        assert float(weights[0].norm()) < float(before[0].norm())
        assert torch.equal(weights[1], before[1])

    def test_equal_gradients_give_equal_weights(self, optimizer: Optimizer) -> None:
        """Equal gradients give equal weights to the bit, whatever other generators gave, also in a resumed run."""
        ends = []
        for seed in (1, 2):
            weights = parameters()
            made = optimizer.make(groups_of(weights))
            torch.manual_seed(seed)
            take_steps(made, weights, range(3))
            ends.append(weights)
        assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))

    def test_nothing_is_kept_in_its_groups(self, optimizer: Optimizer) -> None:
        """Steps leave the settings of its groups alone: checkpoints have its state by parameter, and nothing else."""
        weights = parameters()
        made = optimizer.make(groups_of(weights))
        settings = [{name: each for name, each in group.items() if name != "params"} for group in made.param_groups]
        before = copy.deepcopy(settings)
        take_steps(made, weights, range(3))
        after = [{name: each for name, each in group.items() if name != "params"} for group in made.param_groups]
        assert after == before

    def test_it_resumes_from_its_state(self, optimizer: Optimizer) -> None:
        """State that was written down after two steps gives the third to the bit, in an optimizer of its own."""
        weights = parameters()
        made = optimizer.make(groups_of(weights))
        take_steps(made, weights, range(2))
        copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
        tensors, numbers = copy.deepcopy(optimizer_state(made))
        other = optimizer.make(groups_of(copies))
        check_optimizer_state(optimizer, other, tensors, numbers)
        load_optimizer_state(other, tensors, numbers)
        take_steps(made, weights, range(2, 3))
        take_steps(other, copies, range(2, 3))
        assert all(torch.equal(now, gone_on) for now, gone_on in zip(weights, copies, strict=True))

    def test_a_stack_s_parameters_are_enough(self, optimizer: Optimizer) -> None:
        """Two optimizers of a part each do what one of all does, as a streamed step needs it."""
        together, apart = parameters(), parameters()
        whole = optimizer.make(groups_of(together))
        parts = [optimizer.make(groups_of([weight])) for weight in apart]
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for one, other in zip(together, apart, strict=True):
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
            for made in (whole, *parts):
                made.step()
        assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))

    def test_forged_state_is_refused(self, optimizer: Optimizer) -> None:
        """Kernels trust shapes: a tensor of another one than the parameter's, or of integers, isn't let in."""
        weights = parameters()
        made = optimizer.make(groups_of(weights))
        take_steps(made, weights, range(1))
        for key, value in made.state[weights[0]].items():
            if isinstance(value, Tensor):
                assert optimizer.fits(key, value, weights[0]), key
                for forged in (torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.zeros((), dtype=torch.int64)):
                    assert not optimizer.fits(key, forged, weights[0]), key
        assert not optimizer.fits("step", -1, weights[0])
        assert not optimizer.fits("nobody's", torch.zeros(WIDTH + 1, WIDTH), weights[0])

    def test_the_plan_counts_its_state(self, optimizer: Optimizer) -> None:
        """``state_bytes`` is a matrix's state for each weight, to 10 %; common tables don't count."""
        weights = parameters()
        made = optimizer.make(groups_of(weights))
        take_steps(made, weights, range(1))
        tensors = [value for value in made.state[weights[0]].values() if isinstance(value, Tensor)]
        own = [each for each in tensors if each.numel() >= WIDTH or each.numel() == WIDTH**2 // 256]
        held = sum(each.numel() * each.element_size() for each in own if tuple(each.shape) != (256,))
        assert optimizer.state_bytes == pytest.approx(held / WIDTH**2, rel=0.1)
