"""The tracker against the conformance kit."""

import pytest

from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.tracker import TrackerContract
from stackwise_tensorboard.curves import Curves
from stackwise_tensorboard.options import TensorBoardOptions


class TestPlugin(PluginContract):
    hooks = "stackwise_tensorboard.hooks"


class TestCurves(TrackerContract):
    @pytest.fixture
    def tracker(self):
        return Curves(TensorBoardOptions())
