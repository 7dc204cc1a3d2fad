"""The same on a GPU."""

import pytest
import torch

from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _can_compute(precision):
    precision.check(CUDA)


def result(precision, stack, device):
    """Output and gradient at the input of a stack, on the CPU."""
    x = hidden_states().to(device).requires_grad_()
    context = everything_visible()
    context = context._replace(cos=context.cos.to(device), sin=context.sin.to(device))
    with precision.autocast(device):
        y = stack(x, context)
    return y.detach().cpu(), torch.autograd.grad(y.square().sum(), x)[0].cpu()


def test_a_gpu_computes_what_a_cpu_computes(precision):
    """A stack that is quantised on the GPU gives the CPU's output and gradient, in training and in evaluation."""
    stack, on_cpu = frozen_stack().to(CUDA), frozen_stack()
    precision.prepare(stack, trainable=False)
    precision.prepare(on_cpu, trainable=False)
    for training in (False, True):
        for found, expected in zip(
            result(precision, stack.train(training), CUDA), result(precision, on_cpu, CPU), strict=True
        ):
            assert (found - expected).norm() <= 0.02 * expected.norm()


def test_tensors_go_from_gpu_to_cpu_and_back(precision):
    """What a GPU quantised is read on a CPU and on a GPU, with the same tensors."""
    stack = frozen_stack().to(CUDA)
    precision.prepare(stack, trainable=False)
    written = {name: tensor.cpu() for name, tensor in precision.to_tensors(stack).items()}
    for device in (CPU, CUDA):
        fresh = frozen_stack(seed=1).to(device)
        precision.from_tensors(fresh, written)
        assert {parameter.device.type for parameter in fresh.parameters()} == {device.type}
        again = precision.to_tensors(fresh)
        assert again.keys() == written.keys()
        assert all(torch.equal(again[name].cpu(), written[name]) for name in written)
        found, expected = result(precision, fresh, device)[0], result(precision, stack, CUDA)[0]
        assert (found - expected).norm() <= 0.02 * expected.norm()
