import math

import pytest
import torch

from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.engine.rack.number_range import OutOfRange
from stackwise_core.interfaces.cache_backend import Layout

FORMATS = ("fp32", "bf16", "int8", "fp8", "int4")
LARGEST_ERROR = {"fp32": 0.0, "bf16": 0.003, "int8": 0.012, "fp8": 0.03, "int4": 0.1}
"""Relative to the norm of normally distributed hidden states."""


def layout(dtype: str) -> Layout:
    return Layout(tokens=5, d_model=64, dtype=dtype)


def hidden_states(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FORMATS)
def test_entries_have_the_layout_s_shape_and_bytes(dtype):
    """What a store is given is as large as the plan counts."""
    entries = encode(hidden_states(), layout(dtype))
    assert (entries.shape[1:], entries.dtype) == (layout(dtype).shape, layout(dtype).torch_dtype)
    assert entries[0].numel() * entries.element_size() == layout(dtype).bytes_per_entry


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_error_is_that_of_the_format(dtype):
    """It is within its bound, and not less than half of it: no format is better than it can be."""
    hidden = hidden_states()
    error = (decode(encode(hidden, layout(dtype)), layout(dtype)) - hidden).norm() / hidden.norm()
    assert LARGEST_ERROR[dtype] / 2 <= error <= LARGEST_ERROR[dtype]


@pytest.mark.parametrize("dtype", ["int8", "fp8", "int4"])
def test_codes_and_scales_are_those_of_a_plain_loop(dtype):
    """Token by token, and for int4 group by group, written without tensors."""
    hidden = hidden_states(1)[:1, :2]
    decoded = decode(encode(hidden, layout(dtype)), layout(dtype))
    size = 32 if dtype == "int4" else 64
    for token in range(2):
        for start in range(0, 64, size):
            values = hidden[0, token, start : start + size]
            largest = float(values.abs().max())
            scale = torch.tensor(largest / {"int8": 127, "fp8": 448, "int4": 7}[dtype])
            scale = scale.bfloat16().float() if dtype == "int4" else scale
            for place, value in enumerate(values):
                code = value / scale
                code = code.to(torch.float8_e4m3fn).float() if dtype == "fp8" else code.round()
                code = code.clamp(-7, 7) if dtype == "int4" else code
                assert decoded[0, token, start + place] == code * scale


@pytest.mark.parametrize("dtype", FORMATS)
def test_nothing_and_outliers_stay_finite(dtype):
    """A token of zeros comes back as zeros, and one huge feature as itself to within the format's step."""
    hidden = torch.zeros(1, 5, 64)
    hidden[0, 1, 7] = 3e4
    hidden[0, 2] = 1e-30
    decoded = decode(encode(hidden, layout(dtype)), layout(dtype))
    assert bool(decoded.isfinite().all())
    assert not decoded[0, 0].any()
    assert decoded[0, 1, 7] == pytest.approx(3e4, rel=0.005)


def test_every_e4m3_code_is_read_right():
    """As torch casts it, for all codes but its NaNs."""
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    entry = torch.cat((codes, torch.ones(1).view(torch.uint8)))[None, None]
    expected = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(decode(entry, Layout(tokens=1, d_model=254, dtype="fp8"))[0, 0], expected)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_a_format_cannot_hold_is_refused(dtype, number):
    """Codes and scales would make other, finite numbers of it; fp32's largest is held by all but bf16."""
    hidden = hidden_states()
    hidden[1, 2, 3] = number
    if number == 3.4e38 and dtype != "bf16":
        assert decode(encode(hidden, layout(dtype)), layout(dtype)).isfinite().all()
        return
    with pytest.raises(OutOfRange, match=r"^the boundary .*at \[1, 2, 3\] \(1 of 960"):
        encode(hidden, layout(dtype), "the boundary")
