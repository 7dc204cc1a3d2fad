import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from stackwise_core.errors import StackwiseError
from stackwise_core.runs.directory import RunDirectory

TENSORS = {"layers.0.weight": torch.arange(12.0).reshape(3, 4), "norm.weight": torch.ones(3)}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs", "first")


def test_a_name_that_is_taken_gets_a_number(tmp_path, run):
    """No run ever writes into another's directory."""
    assert RunDirectory.create(tmp_path / "runs", "first").path.name == "first-2"
    assert RunDirectory.create(tmp_path / "runs", "first").path.name == "first-3"


def test_weights_come_back_bit_for_bit(run):
    """What is written is what is read, also by another process and by plain safetensors."""
    run.write_stack(0, TENSORS)
    for read in (
        run.read_stack(0),
        RunDirectory(run.path).read_stack(0),
        load_file(run.path / "stacks/000.safetensors"),
    ):
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_the_manifest_has_every_file_with_its_checksum(run):
    """Each file's SHA-256 and size stand in manifest.json."""
    run.write_text("config.toml", "x = 1\n")
    run.write_stack(2, TENSORS)
    files = json.loads((run.path / "manifest.json").read_text())["files"]
    assert sorted(files) == ["config.toml", "stacks/002.safetensors"]
    for name, entry in files.items():
        content = (run.path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_named_and_refused(run, damage):
    """safetensors reads a flipped bit without a word; the manifest doesn't."""
    run.write_stack(0, TENSORS)
    path = run.path / "stacks/000.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
        assert not torch.equal(load_file(path)["norm.weight"], TENSORS["norm.weight"]) or not torch.equal(
            load_file(path)["layers.0.weight"], TENSORS["layers.0.weight"]
        )
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        path.unlink()
    with pytest.raises(StackwiseError, match=r"000\.safetensors"):
        run.read_stack(0)
