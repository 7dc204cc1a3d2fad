"""The precisions against the conformance kit."""

import pytest

from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.precision import PrecisionContract
from stackwise_precision.floats import Bf16, Fp16, Fp32
from stackwise_precision.fp8 import Fp8
from stackwise_precision.nf_fp8 import NfFp8
from stackwise_precision.nvfp4 import Nvfp4
from stackwise_precision.options import (
    Bf16Options,
    Fp8Options,
    Fp16Options,
    Fp32Options,
    NfFp8Options,
    Nvfp4Options,
)


class TestPlugin(PluginContract):
    hooks = "stackwise_precision.hooks"


class TestFp32(PrecisionContract):
    largest_error = 0.0

    @pytest.fixture
    def precision(self):
        return Fp32(Fp32Options())


class TestBf16(PrecisionContract):
    largest_error = 0.01

    @pytest.fixture
    def precision(self):
        return Bf16(Bf16Options())


class TestFp16ComputedInBf16(PrecisionContract):
    largest_error = 0.01

    @pytest.fixture
    def precision(self):
        return Fp16(Fp16Options())


class TestFp16(PrecisionContract):
    largest_error = 0.0015

    @pytest.fixture
    def precision(self):
        return Fp16(Fp16Options(cpu_compute="fp16"))


class TestFp8(PrecisionContract):
    largest_error = 0.08

    @pytest.fixture
    def precision(self):
        return Fp8(Fp8Options())


class TestFp8ComputedInFp32(PrecisionContract):
    largest_error = 0.08

    @pytest.fixture
    def precision(self):
        return Fp8(Fp8Options(compute="fp32"))


class TestNvfp4(PrecisionContract):
    largest_error = 0.3

    @pytest.fixture
    def precision(self):
        return Nvfp4(Nvfp4Options())


class TestNvfp4ComputedInFp32(PrecisionContract):
    largest_error = 0.3

    @pytest.fixture
    def precision(self):
        return Nvfp4(Nvfp4Options(compute="fp32"))


class TestNfFp8(PrecisionContract):
    largest_error = 0.26

    @pytest.fixture
    def precision(self):
        return NfFp8(NfFp8Options())


class TestNfFp8InBlocksOf64(PrecisionContract):
    largest_error = 0.28

    @pytest.fixture
    def precision(self):
        return NfFp8(NfFp8Options(block_size=64))


class TestNfFp8ComputedInFp32(PrecisionContract):
    largest_error = 0.26

    @pytest.fixture
    def precision(self):
        return NfFp8(NfFp8Options(compute="fp32"))
