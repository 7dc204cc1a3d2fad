"""The step that a plan takes to load what a process's first one loads."""

import pytest
import torch

from stackwise_core.engine.plan.first_step import take_first_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_draws_nothing_and_leaves_no_gradient_mode_behind(dtype):
    """A plan changes nothing of what the run draws after it."""
    before = torch.get_rng_state()
    take_first_step.__wrapped__(torch.device("cpu"), dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_it_is_taken_once():
    """Later plans of the same process pay nothing for it."""
    for _ in range(2):
        take_first_step(torch.device("cpu"), torch.float32)
    taken = take_first_step.cache_info().misses
    take_first_step(torch.device("cpu"), torch.float32)
    assert take_first_step.cache_info().misses == taken
