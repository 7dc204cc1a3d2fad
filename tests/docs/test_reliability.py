"""docs/reliability.md names the test that holds each promise, and it is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (.+?) \| (.+) \|$", (ROOT / "docs" / "reliability.md").read_text().partition("\n## Hostile")[0], re.M
)
PROMISES = {promise: held_by for promise, held_by in ROWS if set(promise) != {"-"} and held_by != "tested by"}


def is_tested_by(name: str) -> bool:
    """Whether there are tests by a name of the page: a test file, a folder of tests, or a plugin's."""
    place = ROOT / "tests" / name
    files = [place.with_name(f"test_{place.name}.py"), place.with_name(f"{place.name}.py"), ROOT / name]
    return any(file.is_file() for file in files) or any(folder.is_dir() for folder in (place, ROOT / "plugins" / name))


@pytest.mark.parametrize("promise", PROMISES)
def test_each_promise_names_tests_that_are_there(promise):
    """By its path below ``tests``, without ``test_`` and ``.py``; bad input is promised further down."""
    names = re.findall(r"`([\w/.-]+)`", PROMISES[promise])
    assert names or PROMISES[promise] == "below"
    assert [name for name in names if not is_tested_by(name)] == []


def test_a_test_that_is_not_there_is_noticed():
    """As the names that were there before tests moved."""
    assert is_tested_by("engine/resume")
    assert not is_tested_by("engine/loop/resume")
    assert len(PROMISES) > 30
