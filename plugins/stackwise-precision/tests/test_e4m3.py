"""8-bit floats against their definition."""

from itertools import pairwise

import pytest
import torch

from stackwise_precision import e4m3


def defined(code):
    """The number of a code as arXiv 2209.05433, table 1, defines it."""
    sign, exponent, mantissa = -1 if code & 0x80 else 1, code >> 3 & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


NUMBERS = {code: defined(code) for code in range(256) if code & 0x7F != 0x7F}  # these two are NaN
CODES = torch.tensor(list(NUMBERS), dtype=torch.uint8)


def test_every_code_is_decoded():
    """All 254 numbers, subnormal ones among them, are those of the definition."""
    assert e4m3.decode(CODES).tolist() == list(NUMBERS.values())


def test_every_number_keeps_its_code():
    """A number is encoded as itself, zero's sign included."""
    assert torch.equal(e4m3.encode(torch.tensor(list(NUMBERS.values()))), CODES)


def test_the_nearest_number_is_taken():
    """Among all numbers none is nearer; of two that are as near, the one whose mantissa is even is taken."""
    ordered = sorted(set(NUMBERS.values()))
    ties = [(low + high) / 2 for low, high in pairwise(ordered)]
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-10, 10).repeat(100)
    values = torch.cat((values, torch.tensor(ties)))
    codes = e4m3.encode(values)
    distances = (values.double()[:, None] - torch.tensor(ordered, dtype=torch.float64)).abs()
    found = (values.double() - e4m3.decode(codes).double()).abs()
    assert torch.equal(found, distances.min(dim=1).values)
    assert not (codes[-len(ties) :] & 1).any()


@pytest.mark.parametrize(("value", "number"), [(449.0, 448.0), (-1e30, -448.0), (2.0**-11, 0.0)])
def test_the_ends_of_the_range(value, number):
    """Beyond the largest number is the largest, and below half the smallest is zero."""
    assert e4m3.decode(e4m3.encode(torch.tensor([value]))).item() == number
