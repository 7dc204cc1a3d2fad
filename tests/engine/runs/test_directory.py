import hashlib
import json
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.component import ContractError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import embedding_file, head_file, rack_file

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


NF4 = {"use": "nf4", "double_quant": True}
CODES = {"layers.0.weight": torch.arange(6, dtype=torch.uint8)}


def test_a_frozen_stack_is_found_again_at_its_precision(run):
    """Also by another process, codes bit for bit; other stacks aren't there."""
    run.write_stack(1, TENSORS)
    run.write_prepared(1, NF4, CODES)
    assert torch.equal(RunDirectory(run.path).read_prepared(1, NF4)["layers.0.weight"], CODES["layers.0.weight"])
    run.write_stack(0, TENSORS)
    assert run.read_prepared(0, NF4) is None


def test_a_frozen_stack_at_another_precision_is_not_taken(run):
    """Each option counts, since it decides what the codes mean."""
    run.write_stack(1, TENSORS)
    run.write_prepared(1, NF4, CODES)
    assert run.read_prepared(1, NF4 | {"double_quant": False}) is None
    run.write_prepared(1, NF4 | {"double_quant": False}, CODES)
    assert run.read_prepared(1, NF4) is None
    assert run.read_prepared(1, NF4 | {"double_quant": False}) is not None


def test_a_frozen_stack_of_other_masters_is_not_taken(run):
    """After its stack went on training it is stale, and not if the weights are the same again."""
    run.write_stack(1, TENSORS)
    run.write_prepared(1, NF4, CODES)
    run.write_stack(1, TENSORS | {"norm.weight": torch.zeros(3)})
    assert run.read_prepared(1, NF4) is None
    run.write_stack(1, TENSORS)
    assert run.read_prepared(1, NF4) is not None


def test_a_frozen_stack_that_was_deleted_is_not_there(run):
    """It can be made again; one with flipped bits is refused."""
    run.write_stack(1, TENSORS)
    run.write_prepared(1, NF4, CODES)
    path = run.path / "trunk/001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StackwiseError, match=r"trunk/001\.safetensors: damaged; .*made again from stacks/001\.safe"):
        run.read_prepared(1, NF4)
    path.unlink()
    assert run.read_prepared(1, NF4) is None


def save_adapter(weights: bytes):
    def save(directory):
        (directory / "adapter_config.json").write_text("{}")
        (directory / "adapter_model.safetensors").write_bytes(weights)

    return save


def test_adapters_are_listed_by_stack_and_dropped(run):
    """A stack can have several; each is a directory of its own."""
    run.write_adapter(0, "trunk", save_adapter(b"zero, trunk"))
    run.write_adapter(0, "stack", save_adapter(b"zero, stack"))
    run.write_adapter(10, "stack", save_adapter(b"ten"))
    assert [run.adapters(index) for index in (0, 1, 10, 100)] == [["stack", "trunk"], [], ["stack"], []]
    assert run.adapter(0, "trunk") == run.path / "adapters/000/trunk"
    assert (run.adapter(0, "trunk") / "adapter_model.safetensors").read_bytes() == b"zero, trunk"
    run.drop_adapter(0, "trunk")
    assert RunDirectory(run.path).adapters(0) == ["stack"]
    assert not (run.path / "adapters/000/trunk").exists()
    with pytest.raises(StackwiseError, match=r"adapters/000/trunk: the run hasn't written it"):
        run.adapter(0, "trunk")


def test_an_adapter_that_cannot_be_saved_leaves_the_old_one(run):
    """Its files count together."""
    run.write_adapter(0, "stack", save_adapter(b"old"))

    def half(directory):
        (directory / "adapter_config.json").write_text("{'new': 1}")
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        run.write_adapter(0, "stack", half)
    assert (run.adapter(0, "stack") / "adapter_config.json").read_text() == "{}"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_named_and_refused(run, file):
    """Both of its files are compared before anything reads them."""
    run.write_adapter(0, "stack", save_adapter(b"weights"))
    (run.path / "adapters/000/stack" / file).write_bytes(b"[]")
    with pytest.raises(StackwiseError, match=rf"adapters/000/stack/{file}: damaged"):
        run.adapter(0, "stack")


def saves(*files: str):
    def save(directory):
        for file in files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            save_file({"weight": torch.tensor([float(len(file))])}, directory / file)

    return save


def test_an_adapter_s_files_may_have_any_plain_names(run):
    """Whatever it writes is kept, in folders too, and what it wrote before and doesn't now is gone."""
    run.write_adapter(0, "stack", saves("down.safetensors", "more/up.safetensors"))
    assert sorted(run.checksums(0)) == ["adapters/000/stack/down.safetensors", "adapters/000/stack/more/up.safetensors"]
    run.write_adapter(0, "stack", saves("more/up.safetensors", "gate.safetensors"))
    held = [path.name for path in run.adapter(0, "stack").rglob("*") if path.is_file()]
    assert sorted(held) == ["gate.safetensors", "up.safetensors"]


def test_files_of_an_adapter_are_told_apart_in_a_rack(run):
    """Their tensors may have the same names; a single file's have the adapter's name before them alone."""
    run.write_adapter(0, "stack", saves("down.safetensors", "more/up.safetensors"))
    run.write_adapter(1, "trunk", saves("only.safetensors"))
    run.write_rack(1)
    held = load_file(run.path / "racks/001.safetensors")
    assert {name: int(tensor) for name, tensor in held.items()} == {
        "adapters.0.stack.down.weight": 16,
        "adapters.0.stack.more/up.weight": 19,
        "adapters.1.trunk.weight": 16,
    }


@pytest.mark.parametrize("file", ["a b", ".hidden", "weights.new", "weights.tmp", "ä", "x/.y", "-", "a\\b"])
def test_a_file_that_cannot_be_kept_is_the_adapter_s_fault(run, file):
    """Names that a manifest can't hold, or that a file has while it is written."""
    with pytest.raises(ContractError, match=r'adapter "stack": save\(\) wrote .*; expected files whose names'):
        run.write_adapter(0, "stack", saves(file))
    assert run.adapters(0) == []


def test_an_adapter_that_writes_nothing_is_at_fault(run):
    """What it learnt would be lost."""
    with pytest.raises(ContractError, match=r'adapter "stack": save\(\) wrote no file'):
        run.write_adapter(0, "stack", saves())


def test_a_link_is_no_adapter_s_file(run, tmp_path):
    """It could lead to anything."""
    (tmp_path / "secret").write_text("1")
    with pytest.raises(ContractError, match="'weights'"):
        run.write_adapter(0, "stack", lambda directory: (directory / "weights").symlink_to(tmp_path / "secret"))


SPEC = RackSpec(blocks=(1, 1), vocab_size=5, seq_len=8, d_model=4, n_heads=2, n_kv_heads=2, d_ff=4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("ends", "owners"), [("shared", [None]), ("per_stack", [0, 1])])
def test_ends_are_read_by_their_owner(run, tied, ends, owners):
    """One pair for all stacks or one each, with a head of its own where it isn't the embedding."""
    for place, owner in enumerate(owners):
        run.write_tensors(embedding_file(owner), {"embed_tokens.weight": torch.full((5, 4), float(place))})
        if not tied:
            run.write_tensors(head_file(owner), {"lm_head.weight": torch.full((5, 4), place + 0.5)})
    read = run.read_ends(evolve(SPEC, tie_embeddings=tied, ends=ends))
    assert list(read) == owners
    for place, owner in enumerate(owners):
        assert {name: tensor[0, 0].item() for name, tensor in read[owner].items()} == (
            {"embed_tokens.weight": place} if tied else {"embed_tokens.weight": place, "lm_head.weight": place + 0.5}
        )


def test_a_missing_head_is_named(run):
    """A rack whose head is its own needs that file."""
    run.write_tensors(embedding_file(None), {"embed_tokens.weight": torch.zeros(5, 4)})
    with pytest.raises(StackwiseError, match=r"head\.safetensors: the run hasn't written it"):
        run.read_ends(evolve(SPEC, tie_embeddings=False))


def test_a_copied_file_keeps_what_is_known_of_it(run, tmp_path):
    """Bits, checksum, and what was said when it was written."""
    run.write_stack(1, TENSORS)
    run.write_prepared(1, NF4, CODES)
    other = RunDirectory.create(tmp_path / "runs", "other")
    for name in run.manifest:
        other.copy(name, run)
        assert other.manifest.about(name) == run.manifest.about(name)
    assert torch.equal(RunDirectory(other.path).read_prepared(1, NF4)["layers.0.weight"], CODES["layers.0.weight"])


def test_a_damaged_file_is_not_copied(run, tmp_path):
    """A copy would give flipped bits a checksum that fits."""
    run.write_stack(0, TENSORS)
    path = run.path / "stacks/000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    other = RunDirectory.create(tmp_path / "runs", "other")
    with pytest.raises(StackwiseError, match=r"first/stacks/000\.safetensors: damaged"):
        other.copy("stacks/000.safetensors", run)
    assert not list(other.manifest)
    assert not list(other.path.rglob("*.safetensors*"))


def test_damaged_json_is_refused(run):
    """Also where it is still JSON."""
    run.write_json("progress.json", {"phases": [1]})
    assert run.read_json("progress.json") == {"phases": [1]}
    text = (run.path / "progress.json").read_text()
    (run.path / "progress.json").write_text(text.replace("1", "2"))
    with pytest.raises(StackwiseError, match=r"progress\.json: damaged"):
        run.read_json("progress.json")


@pytest.mark.slow
def test_one_process_writes_at_a_time(run):
    """A second one is refused while the first is at work, and not after it ended."""
    code = f"""
from pathlib import Path
from stackwise_core.errors import StackwiseError
from stackwise_core.engine.runs.directory import RunDirectory
try:
    with RunDirectory(Path({str(run.path)!r})).locked():
        print("mine")
except StackwiseError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    with run.locked():
        assert subprocess.run(command, capture_output=True, text=True).stdout == (
            f"{run.path}: another process is working on this run.\n"
        )
    assert subprocess.run(command, capture_output=True, text=True).stdout == "mine\n"


def test_what_another_process_wrote_before_the_lock_is_known_within_it(run):
    """A directory that was opened earlier doesn't put back the manifest of then."""
    opened_earlier = RunDirectory(run.path)
    run.write_text("note.txt", "written since")
    with opened_earlier.locked():
        opened_earlier.write_text("other.txt", "mine")
    assert {"note.txt", "other.txt"} <= set(RunDirectory(run.path).manifest)


@pytest.mark.parametrize("stack", [3, 1234])
def test_a_rack_s_one_file_has_each_stack_s_own_number(run, stack):
    """Also beyond a thousand stacks, whose numbers have four digits."""
    run.write_text("config.toml", "")
    run.write_stack(stack, TENSORS)
    run.write_tensors(embedding_file(stack), {"embed_tokens.weight": torch.ones(2)})
    run.write_rack(1)
    names = load_file(run.path / rack_file(1)).keys()
    assert names == {f"stacks.{stack}.{name}" for name in (*TENSORS, "embed_tokens.weight")}
