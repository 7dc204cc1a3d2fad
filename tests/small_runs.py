"""Small runs that tests read and damage: fixtures for a ``conftest.py`` to import, and what their files say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.changed_files import seal
from tests.tiny import run_tiny

SHORT = {"training.steps_per_stack": 6, "evaluation": {"every": 3, "sequences": 4, "draws": 1}}
"""Changes of a configuration that make a run short."""


def lines(directory: Path, kind: str) -> list[dict]:
    """Return the lines of metrics.jsonl of one kind."""
    every = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A block-wise run of three stacks, with boundaries on the disk and validations."""
    return run_tiny(tmp_path_factory.mktemp("finished"), SHORT | {"cache_backend": {"use": "disk"}}).directory


@pytest.fixture
def run(tmp_path, finished) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


@pytest.fixture
def changed(run) -> Callable[[str, Callable], Path]:
    """Change a JSON file of the copy, with or without its checksum."""

    def change(name: str, how: Callable[[dict], None], sealed: bool = True) -> Path:
        value = json.loads((run / name).read_text())
        how(value)
        (run / name).write_text(json.dumps(value))
        if sealed:
            seal(run, name)
        return run

    return change
