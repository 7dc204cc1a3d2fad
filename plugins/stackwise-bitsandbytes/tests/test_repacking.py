"""On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights in place at an evaluation, unless told not to."""

import pytest
import torch

from stackwise_bitsandbytes.library import bitsandbytes as bnb
from stackwise_core.testing.precision import bits_of
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states

CPU = torch.device("cpu")


def linears(stack):
    return [module for module in stack.modules() if isinstance(module, bnb.nn.Linear4bit)]


def inputs_with_a_gradient(precision, stack):
    """Count the layers that pass a gradient to their input, in a training step."""
    probes = []

    def probe(layer, inputs):
        probes.append(torch.zeros(layer.in_features, requires_grad=True))
        return (inputs[0] + probes[-1].to(inputs[0].dtype),)

    handles = [layer.register_forward_pre_hook(probe) for layer in linears(stack)]
    with precision.autocast(CPU):
        stack.train()(hidden_states(), everything_visible()).square().sum().backward()
    for handle in handles:
        handle.remove()
    return sum(each.grad is not None and bool(each.grad.any()) for each in probes)


def evaluate(precision, stack):
    with torch.no_grad(), precision.autocast(CPU):
        stack.eval()(hidden_states(), everything_visible())


@pytest.fixture
def prepared(make, four_bit):
    """A precision, and two frozen stacks: one quantised, one read from tensors, which makes its layers another way."""
    precision, stack = make(four_bit), frozen_stack()
    precision.prepare(stack, trainable=False)
    fresh = frozen_stack(seed=1)
    precision.from_tensors(fresh, precision.to_tensors(stack))
    return precision, [stack, fresh]


def test_training_after_an_evaluation_keeps_every_gradient(prepared):
    """As many layers pass a gradient down after an evaluation as before, all of them, and no tensor changed."""
    precision, stacks = prepared
    for stack in stacks:
        before = bits_of(precision, stack)
        assert inputs_with_a_gradient(precision, stack) == len(linears(stack)) == 2 * 7
        evaluate(precision, stack)
        assert inputs_with_a_gradient(precision, stack) == 2 * 7
        assert bits_of(precision, stack) == before


def test_repacking_is_off_whatever_the_cpu(prepared, monkeypatch):
    """The switch is off on every layer, on a CPU too on which it would be on."""
    precision, stacks = prepared
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)
    assert not any(layer.support_avx512bf16_for_cpu for each in (stack, *stacks) for layer in linears(each))


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="only CPUs with AVX512-BF16 repack")
def test_with_repacking_gradients_are_lost(prepared):
    """The bug is there: switched on again, an evaluation costs layers their gradients and changes the tensors."""
    precision, (stack, _) = prepared
    before = bits_of(precision, stack)
    for layer in linears(stack):
        layer.support_avx512bf16_for_cpu = True
    evaluate(precision, stack)
    assert inputs_with_a_gradient(precision, stack) < 2 * 7
    assert bits_of(precision, stack) != before
