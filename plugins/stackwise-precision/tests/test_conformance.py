"""The float precisions against the conformance kit."""

import pytest

from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.precision import PrecisionContract
from stackwise_precision.floats import Bf16, Fp16, Fp32
from stackwise_precision.options import Bf16Options, Fp16Options, Fp32Options


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
