"""Small runs, to be read and to be damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stackwise_core.run_files.manifest import Manifest
from tests.tiny import run_tiny

SHORT = {"training.steps_per_stack": 6, "evaluation": {"every": 3, "sequences": 4, "draws": 1}}


def lines(directory: Path, kind: str) -> list[dict]:
    every = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def seal(directory: Path, name: str) -> None:
    """Have the manifest agree with what was done to a file."""
    from hashlib import sha256

    manifest, content = json.loads((directory / "manifest.json").read_text()), (directory / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert not Manifest(directory).problem(name)


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
