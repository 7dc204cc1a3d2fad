"""The layer that decodes its weight: what it computes, what it keeps, what peft makes of it."""

import copy
import weakref

import pytest
import torch
from torch import nn

from stackwise_core.engine.rack.number_range import OutOfRange
from stackwise_core.engine.rack.quantised_linear import QuantisedLinear
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states
from stackwise_precision.fp8 import E4m3Rows, Fp8
from stackwise_precision.nf_fp8 import Nf4Blocks, NfFp8
from stackwise_precision.nvfp4 import E2m1Blocks, Nvfp4
from stackwise_precision.options import Fp8Options, NfFp8Options, Nvfp4Options

CPU = torch.device("cpu")
OUT, IN = 48, 100  # no block ends with a row
PRECISIONS = {"fp8": Fp8(Fp8Options()), "nvfp4": Nvfp4(Nvfp4Options()), "nf_fp8": NfFp8(NfFp8Options())}
precisions = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
formats = pytest.mark.parametrize(
    "weight_format", [E4m3Rows(), E2m1Blocks(16), Nf4Blocks(64)], ids=["fp8", "nvfp4", "nf_fp8"]
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(weight_format, dtype, bias=None):
    layer = QuantisedLinear(IN, OUT, weight_format, dtype, device=CPU, bias=bias)
    layer.encode(normal(OUT, IN), "weight")
    return layer


def dense_of(layer):
    dense = nn.Linear(IN, OUT, bias=False, dtype=layer.dtype).requires_grad_(False)
    dense.weight.copy_(layer.weight)
    return dense


@formats
@dtypes
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_a_dense_layer_does(weight_format, dtype, training):
    """Output and gradient to the input are, to the bit, those of an ``nn.Linear`` that holds the decoded weight."""
    layer = layer_of(weight_format, dtype).train(training)
    results = []
    for each in (layer, dense_of(layer)):
        x = normal(2, 9, IN, seed=1).to(dtype).requires_grad_()
        y = each(x)
        y.backward(normal(*y.shape, seed=2).to(dtype))
        results.append((y, x.grad))
    assert all(torch.equal(ours, dense) for ours, dense in zip(*results, strict=True))


@formats
def test_the_input_may_be_in_another_format(weight_format):
    """It is cast to what the layer computes in, and its gradient comes back in its own."""
    layer, x = layer_of(weight_format, torch.bfloat16), normal(9, IN, seed=1).requires_grad_()
    y = layer(x)
    assert torch.equal(y, layer(x.bfloat16()))
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@formats
@dtypes
def test_a_bias_is_added_and_can_train(weight_format, dtype):
    """The output with a bias is the one without it plus the bias, which gets the gradient of a sum."""
    bias, x = nn.Parameter(normal(OUT, seed=3)), normal(9, IN, seed=1)
    y = layer_of(weight_format, dtype, bias)(x)
    assert torch.equal(y, layer_of(weight_format, dtype)(x) + bias.to(dtype))
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((OUT,), 9.0))


def kept_for_backward(layer, x):
    """The tensors that autograd holds on to between a layer's forward and its backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        layer(x).sum().backward()
    return kept


@formats
def test_no_weight_is_kept_for_the_backward_pass(weight_format):
    """Autograd keeps the layer's own tensors and nothing else, whereas of a dense layer it keeps the weight."""
    layer = layer_of(weight_format, torch.bfloat16)
    x = normal(9, IN, seed=1).bfloat16().requires_grad_()
    own = {tensor.data_ptr() for tensor in layer.buffers()}
    assert {tensor.data_ptr() for tensor in kept_for_backward(layer, x)} == own
    assert [tensor.numel() for tensor in kept_for_backward(dense_of(layer), x)] == [OUT * IN]


def test_no_weight_outlives_the_forward_pass(monkeypatch):
    """What was decoded for the output is gone before the backward pass, which decodes again."""
    layer, decoded = layer_of(E2m1Blocks(16), torch.bfloat16), []
    decode = layer.weight_format.decode

    def watched(*arguments):
        weight = decode(*arguments)
        decoded.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(layer.weight_format, "decode", watched)
    y = layer(normal(9, IN, seed=1).requires_grad_())
    assert [weight() for weight in decoded] == [None]
    y.sum().backward()
    assert [weight() for weight in decoded] == [None, None]


def test_codes_that_changed_before_the_backward_pass_are_noticed():
    """A layer whose codes were overwritten since its forward pass gives no gradient of another weight."""
    layer, x = layer_of(E4m3Rows(), torch.bfloat16), normal(9, IN).requires_grad_()
    y = layer(x)
    layer.encode(normal(OUT, IN, seed=4), "weight")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@formats
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 70_000.0])
def test_what_is_not_finite_or_too_large_is_refused(weight_format, value):
    """The error says which weight has it, where and how often."""
    weight, layer = normal(OUT, IN), QuantisedLinear(IN, OUT, weight_format, torch.bfloat16, device=CPU)
    weight[7, 31] = weight[40, 2] = value
    with pytest.raises(OutOfRange, match=rf"^layers\.0\.mlp\.up_proj\.weight .*: {value:g} at \[7, 31\] \(2 of 4800"):
        layer.encode(weight, "layers.0.mlp.up_proj.weight")


@formats
@dtypes
def test_the_largest_weights_stay_finite(weight_format, dtype):
    """Weights at the limit are decoded without overflow."""
    layer = QuantisedLinear(IN, OUT, weight_format, dtype, device=CPU)
    layer.encode(torch.full((OUT, IN), 2.0**16), "weight")
    assert torch.allclose(layer.weight.float(), torch.tensor(2.0**16), rtol=2.0**-7)


def test_a_copy_has_tensors_of_its_own():
    """Deep copies compute the same, and go on doing so when the original takes on another weight."""
    layer, x = layer_of(E2m1Blocks(16), torch.float32), normal(9, IN, seed=1)
    other, before = copy.deepcopy(layer), layer(x)
    layer.encode(normal(OUT, IN, seed=4), "weight")
    assert torch.equal(other(x), before)
    assert not torch.equal(layer(x), before)


@pytest.mark.slow
@precisions
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_peft_s_adapters_train_on_it(precision, use_dora):
    """Every weight of an adapter gets a gradient, some steps lower the loss, and the codes stay as they are."""
    peft = pytest.importorskip("peft")
    stack, target = frozen_stack(), hidden_states(seed=9)
    precision.prepare(stack, trainable=False)
    before = {name: tensor.clone() for name, tensor in precision.to_tensors(stack).items()}
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], use_dora=use_dora)
    peft.inject_adapter_in_model(config, stack)
    adapters = [parameter.data for parameter in stack.parameters() if parameter.requires_grad]
    assert {each.dtype for each in adapters} == {torch.bfloat16}  # peft's rule: the format of the weight
    stack.float()  # makes masters of the adapters, and leaves codes and norms as they are
    trained = {name: parameter for name, parameter in stack.named_parameters() if parameter.requires_grad}
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=3e-3), []
    for step in range(10):
        with precision.autocast(CPU):
            loss = (stack(hidden_states(), everything_visible()) - target).square().mean()
        loss.backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in trained.values())
        if step == 1:  # before the first step lora_B is zero, and with it lora_A's gradient
            assert [name for name, parameter in trained.items() if not parameter.grad.any()] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    after = {name.replace(".base_layer", ""): tensor for name, tensor in stack.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
