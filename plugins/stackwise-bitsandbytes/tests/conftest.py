"""The precisions that every file here tests."""

import pytest

from stackwise_bitsandbytes.eight_bit import Int8
from stackwise_bitsandbytes.four_bit import Fp4, Nf4
from stackwise_bitsandbytes.options import EightBitOptions, FourBitOptions

MADE_BY = {"nf4": (Nf4, FourBitOptions), "fp4": (Fp4, FourBitOptions), "int8": (Int8, EightBitOptions)}


@pytest.fixture
def make():
    """Makes a precision by its name and options."""

    def make(name, **options):
        precision, options_class = MADE_BY[name]
        return precision(options_class(**options))

    return make


@pytest.fixture(params=MADE_BY)
def precision(request, make):
    """Each precision with its defaults."""
    return make(request.param)


@pytest.fixture(params=["nf4", "fp4"])
def four_bit(request):
    """The name of each 4-bit precision."""
    return request.param
