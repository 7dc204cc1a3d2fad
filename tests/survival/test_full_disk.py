"""A disk that is full when a file is written: one clear error, nothing that was there is lost, and the run goes on."""

import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from attrs import define

import stackwise_core.system.files
from stackwise_core.engine.events.events import RunStarted
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.metrics import Metrics
from tests.command_line import CONFIG
from tests.interrupted_runs import engine
from tests.run_bits import bits, measured, same

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHANGES = {
    "rack.stacks": 2,
    "rack.tie_embeddings": False,
    "training.steps_per_stack": 4,
    "checkpoint": {"steps": 1, "save_rack": True},
    "precision": {"active": "fp32", "trunk": "nf4"},
    "adapter": {"stack": {"use": "lora", "rank": 2}},
    "cache_backend": {"use": "disk", "shard_entries": 16},
    "evaluation": {"draws": 1, "sequences": 4},
}


def kind(name: str) -> str:
    """A file's path in the run directory with every number and hash left out."""
    return re.sub(r"[0-9a-f]{32}|[0-9]+", "N", name)


class Disk:
    """Counts the files that are made durable in a run's directory, by kind, and may be full for the n-th of one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full_for: str | None = None
        self.nth = 0
        self.seen: Counter[str] = Counter()
        self._fsync = os.fsync
        patch.setattr(stackwise_core.system.files.os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        match = re.fullmatch(r".*/runs/tiny(?:-\d+)?/(?:(.*)/)?\.([^/]+)\.\d+\.tmp", path)
        if match:
            folder, name = match.groups()
            found = kind(f"{folder}/{name}" if folder else name)
            self.seen[found] += 1
            if found == self.full_for and self.seen[found] == self.nth + 1:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    """The disk of one test."""
    return Disk(monkeypatch)


KINDS = {
    "config.toml.N.new",
    "plan.json.N.new",
    "environment.json.N.new",
    "progress.json.N.new",
    "finished.json.N.new",
    "embedding.safetensors.N.new",
    "head.safetensors.N.new",
    "stacks/N.safetensors.N.new",
    "trunk/N.safetensors.N.new",
    "racks/N.safetensors.N.new",
    "resume/N-N.json.N.new",
    "resume/N-N.safetensors.N.new",
    "adapters/N/stack/adapter_config.json.N.new",
    "adapters/N/stack/adapter_model.safetensors.N.new",
    "cache/N/N.safetensors",
    "cache/N.json",
    "manifest.json",
}
CACHE = {"cache/N/N.safetensors", "cache/N.json"}
"""Files that a run can do without."""


@define
class Undisturbed:
    """A run that had room."""

    directory: Path
    written: Counter[str]
    """Number of files of each kind that it wrote."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        run = engine(tmp_path_factory.mktemp("undisturbed"), CHANGES, lambda event: None)
        run.run()
    return Undisturbed(run.directory, disk.seen)


def test_every_kind_of_file_is_among_those_that_are_tried(undisturbed):
    """Else a new kind of file would go untried."""
    assert set(undisturbed.written) == KINDS


@pytest.mark.parametrize("kind_of_file", sorted(KINDS))
def test_a_disk_that_is_full_when_a_file_is_written(tmp_path, undisturbed, disk, kind_of_file):
    """The error names the file, what was there is whole, and with room again the run ends with the same bits."""
    disk.full_for, disk.nth = kind_of_file, undisturbed.written[kind_of_file] // 2
    started: list = []
    run = engine(tmp_path, CHANGES, lambda event: started.append(event) if isinstance(event, RunStarted) else None)
    failed = None
    try:
        run.run()
    except OSError as error:
        failed = error
    assert disk.seen[kind_of_file] > disk.nth
    if failed is None:  # without which a run goes on
        assert kind_of_file in CACHE
    else:
        assert failed.errno == errno.ENOSPC
        assert kind(Path(str(failed.filename)).name) == kind_of_file.rpartition("/")[2]
        if started:
            manifest = RunDirectory(run.directory).manifest
            assert not any(manifest.problem(name) for name in manifest)
        else:  # there is nothing to go on with
            assert not run.directory.exists()
        disk.full_for = None
        again = engine(tmp_path, CHANGES, lambda event: None, run.directory if started else None)
        again.run()
    assert same(bits(run.directory), bits(undisturbed.directory))
    if failed is None or "finished" not in kind_of_file:
        assert measured(run.directory) == measured(undisturbed.directory)


def test_a_measurement_that_the_disk_has_no_room_for_names_its_file():
    """The system's own error doesn't."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), Metrics(Path("/dev/full")) as metrics:
        metrics.write("step", step=1)


def mounted(directory: Path, size: str) -> bool:
    """Whether a file system of so many bytes could be mounted there."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 3 MB."""
    directory = tmp_path / "small"
    if not mounted(directory, "3m"):
        pytest.skip("needs the right to mount a file system")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_real_disk_that_is_full_to_the_last_byte(small_disk):
    """The command line says which file there was no room for, and how to go on; with room again it does."""
    (small_disk / "small.toml").write_text(
        CONFIG.replace('use = "disk"', 'use = "memory"') + "[checkpoint]\nsteps = 1\n"
    )
    command = [sys.executable, "-m", "stackwise_core.cli", "run", "small.toml", "--set", "training.epochs_per_stack=8"]
    process = subprocess.Popen(command, cwd=small_disk, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not [*small_disk.glob("runs/small/resume/*.json")]:
        assert process.poll() is None
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 3_000_000)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert re.search(r"^No space left on device: runs/small/", output, re.MULTILINE), output
    assert '"stackwise run runs/small" resumes this run.' in output
    assert "Traceback" not in output
    filler.unlink()
    done = subprocess.run([*command, "--json"], cwd=small_disk, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["likelihoods"]
    assert "resumes at step" in done.stderr
