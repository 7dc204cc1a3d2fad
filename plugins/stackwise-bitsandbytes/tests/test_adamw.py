"""AdamW in 8 bits by bitsandbytes itself."""

import pytest
import torch

from stackwise_bitsandbytes.adamw import AdamW8bit
from stackwise_core.builtin.options import AdamWOptions
from stackwise_core.testing.optimizer import OptimizerContract
from tests.tiny import run_tiny

WIDE = {"stacks": 2, "blocks_per_stack": 1, "d_model": 64, "n_heads": 2}
"""Its matrices have 4096 weights or more: smaller tensors keep 32 bits."""


class TestAdamW8bit(OptimizerContract):
    @pytest.fixture
    def optimizer(self):
        return AdamW8bit(AdamWOptions())


@pytest.mark.slow
def test_eight_bits_train_as_thirty_two_do(tmp_path):
    """On the CPU, from the same first loss down to nearly the same last one."""
    in_full, in_eight = (
        run_tiny(tmp_path / name, {"rack": WIDE, "training.epochs_per_stack": 2, "optimizer": {"use": name}}).losses
        for name in ("adamw", "adamw_8bit")
    )
    assert in_eight[0] == in_full[0]
    assert in_eight != in_full
    assert in_full[-1] < in_full[0] - 0.5
    assert in_eight[-1] == pytest.approx(in_full[-1], abs=0.02)


def test_the_two_moments_are_in_eight_bits():
    """Of matrices of 4096 weights or more."""
    matrix, norm = (torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 64), (64,)))
    made = AdamW8bit(AdamWOptions()).make([{"params": [matrix, norm], "lr": 1e-3, "weight_decay": 0.0}])
    for parameter in (matrix, norm):
        parameter.grad = torch.randn_like(parameter)
    made.step()
    assert {made.state[matrix][name].dtype for name in ("state1", "state2")} == {torch.uint8}
    assert made.state[norm]["state1"].dtype == torch.float32
