"""The installed plugins."""

import pytest

from stackwise_core.registry import Registry


@pytest.fixture
def registry():
    return Registry.discover(environ={})
