"""The schedules against the conformance kit."""

import pytest

from stackwise_core.testing.mask_schedule import MaskScheduleContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Cosine, Exponential, Linear


class TestPlugin(PluginContract):
    hooks = "stackwise_masking.hooks"


class TestConstant(MaskScheduleContract):
    @pytest.fixture(params=[0.15, 1.0])
    def schedule(self, request):
        return Constant(ConstantOptions(request.param))


class TestShaped(MaskScheduleContract):
    @pytest.fixture(params=[Linear, Exponential, Cosine])
    def schedule(self, request):
        return request.param(RangeOptions())


class TestShapedOverEverything(MaskScheduleContract):
    @pytest.fixture(params=[Linear, Exponential, Cosine])
    def schedule(self, request):
        return request.param(RangeOptions(0.0, 1.0))
