"""The quantised precisions against the conformance kit."""

import pytest

from stackwise_bitsandbytes.eight_bit import Int8
from stackwise_bitsandbytes.four_bit import Fp4, Nf4
from stackwise_bitsandbytes.options import EightBitOptions, FourBitOptions
from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.precision import PrecisionContract


class TestPlugin(PluginContract):
    hooks = "stackwise_bitsandbytes.hooks"


class TestNf4(PrecisionContract):
    largest_error = 0.25

    @pytest.fixture
    def precision(self):
        return Nf4(FourBitOptions())


class TestNf4WithPlainScales(PrecisionContract):
    largest_error = 0.25

    @pytest.fixture
    def precision(self):
        return Nf4(FourBitOptions(double_quant=False))


class TestNf4InSmallBlocks(PrecisionContract):
    largest_error = 0.235

    @pytest.fixture
    def precision(self):
        return Nf4(FourBitOptions(block_size=32))


class TestNf4InLargeBlocks(PrecisionContract):
    largest_error = 0.25

    @pytest.fixture
    def precision(self):
        return Nf4(FourBitOptions(block_size=256))


class TestNf4ComputedInFp32(PrecisionContract):
    largest_error = 0.25

    @pytest.fixture
    def precision(self):
        return Nf4(FourBitOptions(compute="fp32"))


class TestFp4(PrecisionContract):
    largest_error = 0.32

    @pytest.fixture
    def precision(self):
        return Fp4(FourBitOptions())


class TestInt8(PrecisionContract):
    largest_error = 0.02

    @pytest.fixture
    def precision(self):
        return Int8(EightBitOptions())


class TestInt8ComputedInFp32(PrecisionContract):
    largest_error = 0.017

    @pytest.fixture
    def precision(self):
        return Int8(EightBitOptions(compute="fp32"))
