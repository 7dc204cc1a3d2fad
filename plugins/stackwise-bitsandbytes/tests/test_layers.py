"""Contents and output of a quantised layer, compared with codes and scales computed by hand."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from stackwise_bitsandbytes.library import bitsandbytes as bnb
from stackwise_core.testing.small import everything_visible, frozen_stack, hidden_states

CPU = torch.device("cpu")
# Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
# Sign, two bits of exponent, one of mantissa, over the largest, with 1/192 for the subnormal.
MAGNITUDES = torch.tensor([0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1])
FP4 = torch.cat([MAGNITUDES, -MAGNITUDES])


def linear(width=128, rows=48, seed=0):
    """A layer with rows of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(width, rows, bias=False).requires_grad_(False)
    layer.weight.data = torch.randn(rows, width, generator=generator) * torch.logspace(-3, 0, rows)[:, None]
    return layer


def inputs(width=128, dtype=torch.bfloat16):
    return torch.randn(5, 7, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def rounded_in_blocks(weight, code, block):
    """Each weight as the code's nearest value times the largest weight of its block."""
    blocks = weight.flatten().split(block)
    nearest = [
        code[(each[:, None] / each.abs().max() - code).abs().argmin(dim=1)] * each.abs().max() for each in blocks
    ]
    return torch.cat(nearest).reshape(weight.shape)


def held(layer):
    """The weight that a 4-bit layer stands for."""
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize(("name", "code"), [("nf4", NF4), ("fp4", FP4)])
def test_four_bits_are_the_nearest_codes(make, name, code):
    """With plain scales a weight is the nearest value of the published code, times its block's largest weight."""
    layer = make(name, double_quant=False, compute="fp32").quantised(linear())
    assert torch.allclose(held(layer), rounded_in_blocks(linear().weight, code, 64), rtol=1e-6, atol=0)


# On CPUs with AVX-512 bitsandbytes itself decodes 96 and 160 wrongly in blocks of 64, all but 256 in blocks of 256.
@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
@pytest.mark.parametrize("width", [32, 64, 72, 90, 96, 160, 192, 256, 352])
def test_four_bits_are_right_at_any_width(make, width, block_size):
    """Rows that a block doesn't divide decode right too, and where it does they are in blocks of what was asked."""
    dense = linear(width)
    layer = make("nf4", double_quant=False, compute="fp32", block_size=block_size).quantised(dense)
    used = layer.weight.quant_state.blocksize
    assert used == block_size or (width % block_size and used < block_size)
    assert torch.allclose(held(layer), rounded_in_blocks(dense.weight, NF4, used), rtol=1e-6, atol=0)


def test_an_odd_multiple_of_16_is_refused(make, four_bit):
    """No block size divides such rows, so they are refused with what would do; int8 holds them."""
    fault = make(four_bit).fault(linear(80))
    assert "80 weights wide" in fault
    assert "int8" in fault
    assert make("int8").fault(linear(80)) == ""


def test_quantised_scales_lose_little(make, four_bit):
    """Double quantisation moves a weight by less than a hundredth, of weights of one size."""
    dense = torch.nn.Linear(256, 256, bias=False).requires_grad_(False)
    dense.weight.data = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    plain = held(make(four_bit, double_quant=False, compute="fp32").quantised(dense))
    double = held(make(four_bit, double_quant=True, compute="fp32").quantised(dense))
    assert 0 < (plain - double).norm() < 0.01 * plain.norm()


def test_int8_is_the_nearest_step_of_its_row(make):
    """A weight is a multiple of 1/127 of its row's largest, and the nearest; fp16 rounds the weights before."""
    weight = linear().weight.half().float()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    found = make("int8", compute="fp32").quantised(linear())(torch.eye(128)).T
    assert torch.allclose(found / step, (found / step).round(), rtol=0, atol=1e-4)
    assert bool(((found - weight).abs() <= 0.5001 * step).all())


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_four_bits_compute_as_bitsandbytes_by_hand(make, four_bit, compute):
    """The output is that of the weight that bitsandbytes' functions give by hand, to the bit."""
    precision = make(four_bit, compute={torch.bfloat16: "bf16", torch.float32: "fp32"}[compute])
    packed, state = bnb.functional.quantize_4bit(linear().weight, compress_statistics=True, quant_type=four_bit)
    dense = bnb.functional.dequantize_4bit(packed, state).to(compute)
    x = inputs(dtype=compute)
    assert torch.equal(precision.quantised(linear())(x), F.linear(x, dense))


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_int8_computes_as_bitsandbytes_by_hand(make, compute):
    """The output is that of the weight that bitsandbytes' functions give by hand, but for a last bit of a weight."""
    precision = make("int8", compute={torch.bfloat16: "bf16", torch.float32: "fp32"}[compute])
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(linear().weight.half())
    dense = bnb.functional.int8_vectorwise_dequant(codes, scales).to(compute)
    x = inputs(dtype=compute)
    found, expected = precision.quantised(linear())(x), F.linear(x, dense)
    assert (found - expected).norm() <= 2 * torch.finfo(compute).eps * expected.norm()


def test_the_input_s_gradient_is_the_dense_layer_s(precision):
    """It is what a plain layer with the dequantised weight passes down, to the bit, in training and in evaluation."""
    layer = precision.quantised(linear())
    dense = layer(torch.eye(128, dtype=torch.bfloat16)).T.contiguous()
    above = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(2)).bfloat16()
    for training in (True, False):
        layer.train(training)
        given, expected = inputs().requires_grad_(), inputs().requires_grad_()
        layer(given).backward(above)
        F.linear(expected, dense).backward(above)
        assert torch.equal(given.grad, expected.grad)


@pytest.mark.parametrize(("compute", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)])
@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_it_computes_in_what_it_is_told(make, name, compute, dtype):
    """A layer rounds its input to ``compute``, and gives its output in the input's format."""
    layer = make(name, compute=compute).quantised(linear())
    x = inputs(dtype=torch.float32)
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), layer(x if dtype is None else x.to(dtype).float()))
    assert torch.equal(layer(x), layer(x.bfloat16().float())) == (compute == "bf16")


def test_a_layer_keeps_no_activations(precision):
    """For the backward pass a frozen layer keeps its own tensors, and not its input, which could be huge."""
    x = inputs().requires_grad_() * 1
    gone = weakref.ref(x)
    output = precision.quantised(linear())(x)
    del x
    assert output.requires_grad
    assert gone() is None


def test_norms_stay_in_fp32_and_all_layers_are_bitsandbytes_own(precision):
    """Each projection of each block becomes a layer of bitsandbytes; the norms keep their weights."""
    stack, before = frozen_stack(), frozen_stack().state_dict()
    precision.prepare(stack, trainable=False)
    layers = [module for module in stack.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == 2 * 7
    assert all(isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) for layer in layers)
    norms = {name: weight for name, weight in stack.named_parameters() if name.endswith("norm.weight")}
    assert len(norms) == 2 * 2 + 1
    assert all(weight.dtype == torch.float32 and torch.equal(weight, before[name]) for name, weight in norms.items())


def test_peft_can_tell_the_stack(precision, make):
    """A stack from masters and one from a file have the attribute that peft looks for, which others lack."""
    prepared, read = frozen_stack(), frozen_stack()
    precision.prepare(prepared, trainable=False)
    precision.from_tensors(read, precision.to_tensors(prepared))
    attribute = "is_loaded_in_8bit" if precision.name == "int8" else "is_loaded_in_4bit"
    assert not hasattr(frozen_stack(), attribute)
    assert getattr(prepared, attribute) is getattr(read, attribute) is True


def test_a_row_of_zeros_is_zeros(precision):
    """Weights of zero stay zero, and their neighbours are as without them."""
    dense = linear()
    dense.weight.data[3] = 0
    with_zeros, without = precision.quantised(dense)(inputs()), precision.quantised(linear())(inputs())
    assert not with_zeros[..., 3].any()
    if precision.name == "int8":
        others = torch.arange(48) != 3
        assert torch.equal(with_zeros[..., others], without[..., others])


def test_it_is_deterministic(precision):
    """With torch's deterministic algorithms, on memory filled with NaN, output and gradient repeat to the bit."""
    stack = frozen_stack()
    precision.prepare(stack, trainable=False)

    def result():
        x = hidden_states().requires_grad_()
        with precision.autocast(CPU):
            y = stack(x, everything_visible())
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    plain = result()
    torch.use_deterministic_algorithms(True)
    try:
        repeated = [result() for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for each in repeated for one, other in zip(each, plain, strict=True))


def test_quantising_takes_no_random_numbers(precision):
    """What is drawn after a stack was frozen doesn't depend on whether it was."""
    stack, fresh = frozen_stack(), frozen_stack()
    before = torch.get_rng_state()
    precision.prepare(stack, trainable=False)
    precision.from_tensors(fresh, precision.to_tensors(stack))
    assert torch.equal(torch.get_rng_state(), before)
