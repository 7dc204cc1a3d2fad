"""The trainer modes against the conformance kit."""

import pytest

from stackwise_core.config.model import TrainingConfig
from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.trainer_mode import TrainerModeContract
from stackwise_modes.blockwise import Blockwise, Layerwise
from stackwise_modes.end_to_end import EndToEnd
from stackwise_modes.options import EndToEndOptions, NoOptions


class TestPlugin(PluginContract):
    hooks = "stackwise_modes.hooks"


class TestBlockwise(TrainerModeContract):
    @pytest.fixture
    def mode(self):
        return Blockwise(NoOptions())

    @pytest.fixture(params=["time", "depth", "both"])
    def training(self, request):
        return TrainingConfig(over=request.param)


class TestLayerwise(TrainerModeContract):
    @pytest.fixture
    def mode(self):
        return Layerwise(NoOptions())


class TestEndToEnd(TrainerModeContract):
    @pytest.fixture
    def mode(self):
        return EndToEnd(EndToEndOptions())
