"""Folding adapters into full-precision weights."""

from itertools import permutations

import pytest
import torch
from torch import nn

from stackwise_bitsandbytes.four_bit import Nf4
from stackwise_bitsandbytes.options import FourBitOptions
from stackwise_core.errors import StackwiseError
from stackwise_core.testing.adapter import fill
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora, Pissa
from stackwise_peft.options import Ia3Options, LoraOptions, PissaOptions
from stackwise_precision.floats import Bf16
from stackwise_precision.nvfp4 import Nvfp4
from stackwise_precision.options import Bf16Options, Nvfp4Options

LORA, DORA = Lora(LoraOptions(rank=4)), Dora(LoraOptions(rank=6))


def filled(stack, adapter, name, seed):
    adapter.attach(stack, name, 0, 1)
    fill(adapter.trainable(stack, [name]), seed)


@torch.no_grad()
def output(stack):
    return stack.eval()(hidden_states(), everything_visible())


def test_lora_by_the_formula():
    """W + alpha / rank B A, to the last bit, wherever it stands."""
    stack, own = frozen_stack(), frozen_stack()
    filled(stack, LORA, "first", 1)
    layer = stack.layers[1].mlp.up_proj
    a, b = layer.lora_A["first"].weight.detach().clone(), layer.lora_B["first"].weight.detach().clone()
    LORA.merge(stack, "first")
    assert torch.equal(stack.layers[1].mlp.up_proj.weight, own.layers[1].mlp.up_proj.weight + b @ a * (32.0 / 4))


def test_a_merged_stack_is_a_plain_one():
    """Same modules, same names, same flags as before; and it takes another adapter of that name."""
    stack = frozen_stack()
    filled(stack, LORA, "first", 1)
    LORA.merge(stack, "first")
    plain = frozen_stack()
    assert [(name, type(module)) for name, module in stack.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert stack.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in stack.parameters())
    assert not hasattr(stack, "peft_config")
    LORA.attach(stack, "first", 0, 1)


@pytest.mark.parametrize("order", permutations(("first", "second", "third")))
def test_loras_and_doras_in_any_order(order):
    """A dora scales what the adapters before it add; the output stays whichever goes first."""
    stack = frozen_stack()
    for seed, (name, adapter) in enumerate((("first", DORA), ("second", LORA), ("third", DORA))):
        filled(stack, adapter, name, seed)
    # magnitudes as of trained ones, near the norms
    for name, parameter in stack.named_parameters():
        if "magnitude" in name:
            parameter.data += 1
    expected = output(stack)
    for name in order:
        DORA.merge(stack, name)
        assert torch.allclose(output(stack), expected, rtol=1e-4, atol=1e-4)
    assert all(type(each) is not nn.Linear or each.weight.dtype == torch.float32 for each in stack.modules())


def test_what_trains_stays_as_it_was():
    """Merging one adapter leaves the other frozen or training."""
    for asks in (True, False):
        stack = frozen_stack()
        filled(stack, LORA, "first", 1)
        filled(stack, LORA, "second", 2)
        LORA.trainable(stack, ["second"] if asks else [])
        LORA.merge(stack, "first")
        others = [parameter for name, parameter in stack.named_parameters() if ".second." in name]
        assert others
        assert all(parameter.requires_grad == asks for parameter in others)


def test_an_attached_initialisation_merges():
    """The weights are then the original ones and what training added."""
    stack, adapter = frozen_stack(), Pissa(PissaOptions())
    adapter.attach(stack, "first", 0, 1)
    adapter.merge(stack, "first")
    for name, weight in frozen_stack().named_parameters():
        assert torch.allclose(stack.get_parameter(name), weight, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "held"),
    [
        (Bf16(Bf16Options()), "torch.bfloat16"),
        (Nf4(FourBitOptions()), "Linear4bit"),
        # it decodes to fp32, and what is written to that is lost
        (Nvfp4(Nvfp4Options(compute="fp32")), "QuantisedLinear"),
    ],
)
@pytest.mark.parametrize("adapter", [LORA, DORA, Ia3(Ia3Options())])
def test_only_full_precision_is_merged_into(adapter, precision, held):
    """A merge into anything else would round, or be lost; the weights stay, and so does the adapter."""
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)
    filled(stack, adapter, "first", 1)
    before = output_in(precision, stack)
    with pytest.raises(StackwiseError, match=f"which is {held}: merge into the full-precision masters"):
        adapter.merge(stack, "first")
    assert torch.equal(output_in(precision, stack), before)


def output_in(precision, stack):
    with precision.autocast(torch.device("cpu")):
        return output(stack)
