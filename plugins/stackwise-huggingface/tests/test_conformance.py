"""The format against the conformance kit."""

import pytest

from stackwise_core.testing.checkpoint_format import CheckpointFormatContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_huggingface.checkpoint_format import HuggingFace
from stackwise_huggingface.options import HuggingFaceOptions


class TestPlugin(PluginContract):
    hooks = "stackwise_huggingface.hooks"


class TestHuggingFace(CheckpointFormatContract):
    @pytest.fixture
    def format(self):
        return HuggingFace(HuggingFaceOptions())
