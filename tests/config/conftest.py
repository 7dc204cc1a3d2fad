import pytest

from stackwise_core.registry import Registry


@pytest.fixture(scope="session")
def registry():
    """The installed plugins."""
    return Registry.discover(environ={})
