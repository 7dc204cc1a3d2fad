"""The codes and scales of fp8, nvfp4 and nf_fp8 against torchao's, bitsandbytes' and their definitions."""

from statistics import NormalDist

import pytest
import torch

from stackwise_precision import e4m3
from stackwise_precision.fp8 import E4m3Rows
from stackwise_precision.nf_fp8 import NF4, Nf4Blocks
from stackwise_precision.nvfp4 import E2m1Blocks


def normal(*shape, seed=0, std=0.02):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def with_outlier(weight):
    weight[3, 5] = 1e4
    return weight


WEIGHTS = {
    "normal": normal(48, 128),
    "an outlier": with_outlier(normal(48, 128)),
    "heavy tails": normal(48, 128, std=1.0) ** 7,
    "tiny": normal(48, 128, std=1e-12),
    "a grid of ties": (torch.arange(48 * 128) % 97 - 48.0).view(48, 128) / 8,
}
weights = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)


def fp32(weight_format, encoded, weight):
    return weight_format.decode(tuple(encoded.values()), weight.shape[1], torch.float32)


def levels_of(weight_format, encoded):
    """The codes' levels [out, in], looked up one by one."""
    packed = encoded[f"codes_{weight_format.name}"].long()
    codes = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)
    return torch.tensor(weight_format.levels)[codes]


@weights
def test_fp8_is_torchao_s(weight):
    """Codes, scales and weights are those of torchao's float8 tensor with a scale a row."""
    torchao = pytest.importorskip("torchao.quantization")
    theirs = torchao.Float8Tensor.from_hp(weight, granularity=torchao.PerRow())
    ours = E4m3Rows().encode(weight)
    assert torch.equal(ours["codes_e4m3"], theirs.qdata.view(torch.uint8))
    assert torch.equal(ours["row_scales"], theirs.scale)
    assert torch.equal(fp32(E4m3Rows(), ours, weight), theirs.dequantize(torch.float32))


@weights
def test_nvfp4_is_torchao_s(weight):
    """Codes, their order in a byte, scales and weights are those of torchao's NVFP4 tensor with a tensor scale."""
    torchao = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    scale = torchao.per_tensor_amax_to_scale(weight.abs().max())
    theirs = torchao.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)
    weight_format = E2m1Blocks(16)
    ours = weight_format.encode(weight)
    assert torch.equal(ours["codes_e2m1"], theirs.qdata.view(torch.uint8))
    assert torch.equal(ours["block_scales"], theirs.scale.view(torch.uint8))
    assert torch.equal(ours["scale"], theirs.per_tensor_scale)
    assert torch.equal(fp32(weight_format, ours, weight), theirs.dequantize(torch.float32))


def test_nf4_s_levels_are_bitsandbytes():
    """The levels are bitsandbytes' to the bit, and to 1e-6 QLoRA's quantiles of the normal distribution."""
    get_4bit_type = pytest.importorskip("bitsandbytes.functional").get_4bit_type
    assert torch.equal(torch.tensor(NF4), get_4bit_type("nf4", device="cpu"))
    outermost = 0.9677083  # QLoRA's, halfway between 1 - 1/32 and 1 - 1/30
    quantile = NormalDist().inv_cdf
    positive = [quantile(outermost + (0.5 - outermost) * step / 8) for step in range(8)]
    negative = [-quantile(outermost + (0.5 - outermost) * step / 7) for step in range(7)]
    largest = quantile(outermost)
    expected = sorted(value / largest for value in (*positive, 0.0, *negative))
    assert list(NF4) == pytest.approx(expected, abs=1e-6)


def test_nf4_s_codes_are_bitsandbytes():
    """Values that need no scaling get bitsandbytes' codes, which has the first of two in the high half of a byte."""
    quantize_4bit = pytest.importorskip("bitsandbytes.functional").quantize_4bit
    values = torch.rand(512, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values[:, 17] = 1.0  # what bitsandbytes divides each block by
    packed, _ = quantize_4bit(values, blocksize=64, quant_type="nf4")
    theirs = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1).view(512, 64)
    assert torch.equal(Nf4Blocks(64).nearest(values), theirs)


@weights
@pytest.mark.parametrize("block", [16, 64])
def test_nf_fp8_is_as_it_says(weight, block):
    """Each weight is a level times its block's scale times the tensor's, and no other level would be nearer."""
    weight_format = Nf4Blocks(block)
    encoded = weight_format.encode(weight)
    largest = weight.view(48, -1, block).abs().amax(dim=2)
    assert encoded["scale"] == weight.abs().max() / 448
    assert torch.equal(encoded["block_scales"], e4m3.encode((largest / encoded["scale"]).clamp(min=2.0**-9)))
    scales = (e4m3.decode(encoded["block_scales"]) * encoded["scale"]).repeat_interleave(block, dim=1)
    found = fp32(weight_format, encoded, weight)
    assert torch.equal(found, levels_of(weight_format, encoded) * scales)
    nearest = (weight[..., None] - torch.tensor(NF4) * scales[..., None]).abs().amin(dim=2)
    assert torch.allclose((weight - found).abs(), nearest, rtol=1e-5, atol=0)


FORMATS = [E4m3Rows(), E2m1Blocks(16), Nf4Blocks(16), Nf4Blocks(64)]
formats = pytest.mark.parametrize("weight_format", FORMATS, ids=["fp8", "nvfp4", "nf_fp8", "nf_fp8 64"])


@formats
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 17), (5, 100), (2, 64)])
def test_any_shape_will_do(weight_format, shape):
    """Rows that end within a block give the weights of the same rows filled up with zeros."""
    weight = normal(*shape)
    filled = torch.zeros(shape[0], 128)
    filled[:, : shape[1]] = weight
    found = fp32(weight_format, weight_format.encode(weight), weight)
    assert found.shape == shape
    assert found.is_contiguous()
    assert torch.equal(found, fp32(weight_format, weight_format.encode(filled), filled)[:, : shape[1]])


@formats
def test_the_tensors_are_as_announced(weight_format):
    """``empty`` has the names, the order, the shapes and the formats of what ``encode`` gives, none of them float8."""
    encoded, empty = weight_format.encode(normal(5, 100)), weight_format.empty(5, 100, torch.device("cpu"))
    described = [[(name, each.shape, each.dtype) for name, each in some.items()] for some in (encoded, empty)]
    assert described[0] == described[1]
    assert {each.dtype for each in encoded.values()} == {torch.uint8, torch.float32}


@formats
def test_zeros_stay_zeros(weight_format):
    """All of a weight, one of its rows, or one of its blocks may be zero; no e4m3 number is NaN for it."""
    for zeros in (slice(None), slice(3, 4), (slice(None), slice(64, 128))):
        weight = normal(8, 192)
        weight[zeros] = 0
        encoded = weight_format.encode(weight)
        in_e4m3 = [each for name, each in encoded.items() if name in ("codes_e4m3", "block_scales")]
        assert not any(bool((each & 0x7F == 0x7F).any()) for each in in_e4m3)
        found = fp32(weight_format, encoded, weight)
        assert bool(found.isfinite().all())
        assert bool((found[weight == 0] == 0).all())


@formats
def test_half_precision_decodes_the_same(weight_format):
    """Decoded in bf16 a weight is what fp32 gives, but for bf16's rounding: of the level, the scale and the product."""
    for weight in WEIGHTS.values():
        tensors = tuple(weight_format.encode(weight).values())
        full = weight_format.decode(tensors, 128, torch.float32)
        half = weight_format.decode(tensors, 128, torch.bfloat16)
        assert half.dtype == torch.bfloat16
        assert torch.allclose(half.float(), full, rtol=3 * 2.0**-8, atol=0)


@formats
def test_encoding_again_changes_little(weight_format):
    """A decoded weight that is encoded again moves by less than it did the first time, by far."""
    weight = WEIGHTS["normal"]
    once = fp32(weight_format, weight_format.encode(weight), weight)
    twice = fp32(weight_format, weight_format.encode(once), once)
    assert (twice - once).norm() < 0.35 * (once - weight).norm()
