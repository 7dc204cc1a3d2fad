import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.testing.fresh import heavy_imports
from tests.changed_files import flip
from tests.tiny import run_tiny

NAMES = (
    "config.toml",
    "plan.json",
    "progress.json",
    "embedding.safetensors",
    "stacks/000.safetensors",
    "trunk/000.safetensors",
    "adapters/000/stack/adapter_config.json",
    "adapters/000/stack/adapter_model.safetensors",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run with every kind of file."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 2,
        "precision": {"active": "fp32", "trunk": "nvfp4"},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
    }
    return run_tiny(tmp_path_factory.mktemp("whole"), changes).directory


@pytest.fixture
def run(tmp_path, whole) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "first"))


def verify(*arguments: object):
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.mark.slow
def test_a_whole_run_is_green(run):
    """One line, and exit code 0."""
    result = verify(run)
    files = len(list(Manifest(run)))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{run}: {files} files, ")
    assert result.stdout.endswith(" kB, all as they were written.\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_found_and_its_file_named(run, name):
    """In masters, frozen stacks, adapters and text files alike; the others are said to be whole by being left out."""
    flip(run / name)
    result = verify(run)
    assert result.exit_code == 1
    heading, row, *_ = result.stdout.splitlines()
    assert heading.split() == ["file", "problem"]
    assert row.split(maxsplit=1) == [name, "damaged; its checksum isn't the one in manifest.json"]
    files = len(list(Manifest(run)))
    assert result.stdout.splitlines()[-1] == f"{run}: 1 of {files} files is damaged or missing."


def test_all_that_is_wrong_is_named_at_once(run):
    """A file that is gone, one that is cut, and one with a flipped bit."""
    (run / "config.toml").unlink()
    (run / "stacks/001.safetensors").write_bytes((run / "stacks/001.safetensors").read_bytes()[:-1])
    flip(run / "trunk/000.safetensors")
    result = json.loads(verify(run, "--json").stdout)
    assert (result["run"], result["ok"], result["files"]) == (str(run), False, len(list(Manifest(run))))
    assert [(name, problem.partition(";")[0]) for name, problem in result["problems"].items()] == [
        ("config.toml", "missing"),
        ("stacks/001.safetensors", "damaged"),
        ("trunk/000.safetensors", "damaged"),
    ]


def test_json_of_a_whole_run(run):
    """Counts, and no problems."""
    result = verify(run, "--json")
    size = sum(Manifest(run).about(name)["bytes"] for name in Manifest(run))
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "run": str(run),
        "ok": True,
        "files": len(list(Manifest(run))),
        "bytes": size,
        "problems": {},
    }


def test_json_of_a_damaged_run_has_its_exit_code(run):
    """1, as without --json."""
    flip(run / "plan.json")
    assert verify(run, "--json").exit_code == 1


def test_what_no_run_wrote_is_no_ones_business(run):
    """Notes beside the weights, the log, and a half-written file change nothing."""
    (run / "notes.txt").write_text("mine")
    (run / "stacks/002.safetensors").write_text("mine")
    (run / "stacks/000.safetensors.99.new").write_text("half")
    (run / "metrics.jsonl").write_text("")
    assert verify(run).exit_code == 0


def test_a_run_that_is_not_finished_is_verified_too(run):
    """What it has so far is compared."""
    RunDirectory(run).manifest.drop("finished.json")
    assert verify(run).exit_code == 0
    flip(run / "stacks/001.safetensors")
    assert verify(run).exit_code == 1


def test_a_file_that_a_run_replaces_meanwhile_is_not_damaged(run, monkeypatch):
    """The manifest is read again before anything is called damaged."""
    problem, writer = Manifest.problem, RunDirectory(run)

    def slow(manifest: Manifest, name: str) -> str | None:
        if name == "plan.json" and writer.read_json("progress.json") != "other":
            writer.write_json("progress.json", "other")
        return problem(manifest, name)

    before = (run / "progress.json").read_bytes()
    monkeypatch.setattr(Manifest, "problem", slow)
    assert verify(run).exit_code == 0
    assert (run / "progress.json").read_bytes() != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs", r"no manifest.json in {here}/runs. Did you mean {here}/runs/first?"),
        ("runs/frist", r"no manifest.json in {here}/runs/frist. Did you mean {here}/runs/first?"),
        ("nowhere", r"no manifest.json in {here}/nowhere."),
        ("runs/first/config.toml", r"no manifest.json in {here}/runs/first/config.toml."),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, run, path, message):
    """With the run that was probably meant."""
    result = verify(tmp_path / path)
    expected = "expected the directory of a run, and there is " + message.replace("{here}", str(tmp_path))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", expected + "\n")


def test_a_manifest_that_is_none_is_named(run):
    """A damaged manifest is an error of one line."""
    (run / "manifest.json").write_text('{"files": {"../victim": 3')
    result = verify(run)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{run}/manifest.json: not a manifest: JSONDecodeError")
    assert result.stderr.count("\n") == 1


def test_torch_is_not_imported_for_it(run):
    """Comparing checksums starts at once."""
    arguments = f"['verify', {str(run)!r}]"
    code = f"from stackwise_core.cli import main; main({arguments}, standalone_mode=False)"
    assert heavy_imports(code, ("torch", "numpy", "safetensors", "peft", "bitsandbytes")) == []
