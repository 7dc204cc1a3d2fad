"""Marks of tests that plugins take over from the conformance kit."""

import pytest

SLOW = frozenset({"test_its_blocks_are_graphs_if_it_says_so"})
"""Checks of the kit that take seconds; it has no mark of its own, which a stranger's plugin would have to declare."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave them out of ``make check``."""
    for item in items:
        if getattr(item, "originalname", item.name) in SLOW:
            item.add_marker(pytest.mark.slow)
