"""The command against the conformance kit."""

import pytest

from stackwise_core.options import NoOptions
from stackwise_core.testing.command import CommandContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_report.command import ReportCommand


class TestPlugin(PluginContract):
    hooks = "stackwise_report.hooks"


class TestReport(CommandContract):
    @pytest.fixture
    def command(self):
        return ReportCommand(NoOptions())
