"""Each check of OptimizerContract refuses an optimizer that is wrong in just that."""

import pytest
import torch

from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.engine.loop.adamw import AdamW
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.optimizer import Optimizer
from stackwise_core.testing.optimizer import OptimizerContract


class Momentum(Optimizer):
    """SGD with momentum, which keeps one buffer."""

    state_bytes = 4.0

    def make(self, groups):
        return torch.optim.SGD(groups, momentum=0.9)


class TestAdamW(OptimizerContract):
    @pytest.fixture
    def optimizer(self):
        return AdamW(AdamWOptions())


def made(make=None, **members):
    """AdamW with another way to make it, or other members."""
    if make is not None:
        members["make"] = lambda self, groups: make(groups)
    return type("Made", (AdamW,), members)(AdamWOptions())


def adamw(groups, **changes):
    return torch.optim.AdamW([{**group, **changes} for group in groups], betas=(0.9, 0.95))


class Uphill(torch.optim.AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = -parameter.grad
        super().step()


class Stubborn(torch.optim.AdamW):
    """Has learning rates of its own, whatever the groups say."""

    def step(self, closure=None):
        said = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = 0.01
        super().step()
        for group, lr in zip(self.param_groups, said, strict=True):
            group["lr"] = lr


class Noisy(torch.optim.AdamW):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(group["lr"] * 1e-3 * torch.rand(parameter.shape))


class Forgetful(torch.optim.AdamW):
    """Scales steps by a count that isn't in its state."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(self.taken)
        super().step()


class Normed(torch.optim.AdamW):
    """Scales gradients by the norm of all of them."""

    def step(self, closure=None):
        every = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm(every)
        for gradient in every:
            gradient.div_(norm + 1e-6).mul_(gradient.norm() + norm)
        super().step()


class Counting(torch.optim.AdamW):
    """Counts steps in its groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
        super().step()


WRONG = {
    "climbs": ("test_it_minimises", made(lambda groups: Uphill(groups))),
    "one group": (
        "test_groups_are_kept",
        made(lambda groups: torch.optim.AdamW([each for group in groups for each in group["params"]], lr=0.01)),
    ),
    "rates of its own": (
        "test_a_learning_rate_that_is_set_later_is_heard",
        made(lambda groups: Stubborn(groups, weight_decay=0.0)),
    ),
    "no decay": ("test_weight_decay_is_heard", made(lambda groups: adamw(groups, weight_decay=0.0))),
    "chance": ("test_equal_gradients_give_equal_weights", made(lambda groups: Noisy(groups))),
    "a count in its groups": ("test_nothing_is_kept_in_its_groups", made(lambda groups: Counting(groups))),
    "a hidden count": ("test_it_resumes_from_its_state", made(lambda groups: Forgetful(groups))),
    "the norm of all": ("test_a_stack_s_parameters_are_enough", made(lambda groups: Normed(groups))),
    "believes anything": ("test_forged_state_is_refused", made(fits=lambda self, key, value, parameter: True)),
    "half of its state": ("test_the_plan_counts_its_state", made(state_bytes=4.0)),
}


class TestRight(OptimizerContract):
    @pytest.fixture
    def optimizer(self):
        return Momentum(None)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_optimizers_are_refused(what, refuses):
    """Each wrong optimizer fails the check that is about it."""
    check, optimizer = WRONG[what]
    refuses(OptimizerContract(), check, StackwiseError, optimizer=optimizer)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(OptimizerContract, {check for check, _ in WRONG.values()})
