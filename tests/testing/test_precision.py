"""Each check of PrecisionContract refuses a precision that is wrong in just that."""

import pytest
import torch
from torch import nn

from stackwise_core.interfaces.precision import Precision
from stackwise_core.testing.precision import PrecisionContract


class Right(Precision):
    """bf16, written anew."""

    bytes_per_weight = 2.0

    def prepare(self, stack, *, trainable):
        if not trainable:
            stack.to(torch.bfloat16)

    def autocast(self, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)


class TestRight(PrecisionContract):
    largest_error = 0.01

    @pytest.fixture
    def precision(self):
        return Right(None)


class Coarse(Right):
    """Rounds to an eighth."""

    def prepare(self, stack, *, trainable):
        for parameter in stack.parameters():
            parameter.data = (parameter.data * 8).round() / 8


class Detached(Right):
    """Loses the gradient to its input, as a repacked quantised layer does."""

    def prepare(self, stack, *, trainable):
        stack.layers[0].register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))


class Repacks(Right):
    """Stores its weights another way when it is first used for inference."""

    def prepare(self, stack, *, trainable):
        super().prepare(stack, trainable=trainable)

        def repack(module, inputs):
            if not module.training:
                module.layers[0].mlp.up_proj.weight.data = module.layers[0].mlp.up_proj.weight.data.flip(0)

        stack.register_forward_pre_hook(repack)


class ByRow(Right):
    """A scale a row, and 0 / 0 where there is nothing to scale."""

    def prepare(self, stack, *, trainable):
        for parameter in stack.parameters():
            scale = parameter.data.abs().amax(dim=-1, keepdim=True)
            parameter.data = (parameter.data / scale * 127).round() / 127 * scale


class Unfreezes(Right):
    def prepare(self, stack, *, trainable):
        stack.requires_grad_(True)


class Product(nn.Module):
    """A matrix product that is no linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.matrix = nn.Parameter(linear.weight.bfloat16(), requires_grad=False)

    def forward(self, x):
        return x @ self.matrix.T


class Replaces(Right):
    """Puts layers of its own kind in the place of linear ones, on which no adapter can stand."""

    def prepare(self, stack, *, trainable):
        super().prepare(stack, trainable=trainable)
        for block in stack.layers if not trainable else ():
            block.mlp.up_proj = Product(block.mlp.up_proj)


class Narrow(Right):
    """Hands its own format on."""

    def prepare(self, stack, *, trainable):
        stack.register_forward_hook(lambda module, inputs, output: output.bfloat16())


class Understated(Right):
    bytes_per_weight = 0.5


class Rounding(Right):
    """Reads a coarser format than was written."""

    def from_tensors(self, stack, tensors):
        super().from_tensors(stack, {name: tensor.to(torch.float8_e5m2) for name, tensor in tensors.items()})


class Forgetful(Right):
    """Reads nothing back."""

    def from_tensors(self, stack, tensors):
        self.prepare(stack, trainable=False)


class NoMasters(Right):
    def prepare(self, stack, *, trainable):
        stack.to(torch.bfloat16)


class Nudged(Right):
    def prepare(self, stack, *, trainable):
        for parameter in stack.parameters():
            parameter.data = parameter.data * (1 + 1e-6)


class Overflows(Right):
    """A scale at which every step is left out."""

    def loss_scaler(self, device):
        return torch.amp.GradScaler(device.type, init_scale=float("inf"))


class Breaks(Right):
    """Says that its blocks are graphs, and breaks them."""

    compiles = True

    def prepare(self, stack, *, trainable):
        super().prepare(stack, trainable=trainable)

        def stop(module, inputs):
            torch._dynamo.graph_break()

        for block in stack.layers:
            block.register_forward_pre_hook(stop)


WRONG = {
    Breaks: "test_its_blocks_are_graphs_if_it_says_so",
    Coarse: "test_a_frozen_stack_computes_the_same",
    Detached: "test_a_frozen_stack_passes_gradients_down",
    Repacks: "test_using_a_frozen_stack_leaves_it",
    ByRow: "test_a_row_of_zeros_stays_finite",
    Unfreezes: "test_a_frozen_stack_has_nothing_that_trains",
    Replaces: "test_projections_stay_linear_layers",
    Narrow: "test_the_residual_stream_is_fp32",
    Understated: "test_bytes_are_as_declared",
    Rounding: "test_tensors_come_back_from_a_file",
    Forgetful: "test_tensors_come_back_from_a_file",
    NoMasters: "test_a_stack_that_trains_keeps_its_masters",
    Nudged: "test_a_stack_that_trains_keeps_its_masters",
    Overflows: "test_every_weight_that_trains_gets_a_gradient",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_precisions_are_refused(wrong, refuses, tmp_path):
    """Each wrong precision fails the check that is about it."""
    files = {"tmp_path": tmp_path} if "file" in WRONG[wrong] else {}
    refuses(TestRight(), WRONG[wrong], RuntimeError, precision=wrong(None), **files)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(PrecisionContract, WRONG.values())
