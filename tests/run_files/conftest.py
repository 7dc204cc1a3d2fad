"""The small runs, for the tests of what reads a run's files."""

from tests.small_runs import changed, finished, run  # noqa: F401 - fixtures
