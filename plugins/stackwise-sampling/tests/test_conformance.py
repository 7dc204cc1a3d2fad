"""The command against the conformance kit."""

import pytest

from stackwise_core.interfaces.command import EndedRun, NextStep
from stackwise_core.options import NoOptions
from stackwise_core.testing.command import CommandContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_sampling.command import SampleCommand


class TestPlugin(PluginContract):
    hooks = "stackwise_sampling.hooks"


class TestSample(CommandContract):
    @pytest.fixture
    def command(self):
        return SampleCommand(NoOptions())

    def test_it_is_named_where_there_are_weights(self, command):
        """A causal rack goes on with a prompt."""
        ended = {"path": "runs/first", "keeps_weights": True}
        assert command.next_step(EndedRun(**ended, causal=False)) == NextStep("write text", ("runs/first",))
        causal = NextStep("write text", ("runs/first", "--prompt", "The "))
        assert command.next_step(EndedRun(**ended, causal=True)) == causal
        assert command.next_step(EndedRun(path="runs/first", keeps_weights=False, causal=False)) is None
