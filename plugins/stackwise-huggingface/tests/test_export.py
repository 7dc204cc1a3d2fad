import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from tests.checkpoints import write_tokenizer
from tests.hashes import hashes
from tests.racks import master_logits
from tests.tiny import TEXT, Ran, run_tiny

ROOT = Path(__file__).parents[3]
QUICK = {"training.steps_per_stack": 3, "rack.stacks": 2, "evaluation.draws": 1, "evaluation.sequences": 4}
IDS = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))
STRANGE = ["In the beginning.\n\tGod – naïve 日本語 🙂", "", "\r\n  two  spaces \x7f\x01 café", "a" * 300]


def stackwise(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


def export(run: Path, target: Path, *arguments: object) -> Path:
    result = stackwise("export", run, "--to", "hf", target, *arguments)
    assert result.exit_code == 0, result.output
    return target


def loaded(directory: Path, kind: str = "EuroBertForMaskedLM"):
    """The model as transformers loads it, every weight from the files."""
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(
        directory, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    """Two stacks of two blocks, with grouped keys and values, one of them frozen in bf16."""
    changes = QUICK | {"rack.blocks_per_stack": 2, "rack.n_kv_heads": 1}
    changes["precision"] = {"active": "fp32", "trunk": "bf16"}
    return run_tiny(tmp_path_factory.mktemp("run"), changes)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["eurobert", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_gives_the_same_logits(tmp_path, ran, tied, architecture):
    """To the bit, in fp32 under sdpa: tied and untied, as either model, at the rack's end and at a shallower depth."""
    if not tied:
        ran = run_tiny(tmp_path, QUICK | {"rack.tie_embeddings": False, "training.head_lr": 0.05})
    kind = {"eurobert": "EuroBertForMaskedLM", "llama": "LlamaForCausalLM"}[architecture]
    for depth in (1, 2):
        target = export(ran.directory, tmp_path / f"{depth}", "--architecture", architecture, "--depth", depth)
        theirs = logits(loaded(target, kind))
        assert torch.equal(theirs, master_logits(ran.directory, ran.setup.spec, IDS, depth=depth))
    config = json.loads((target / "config.json").read_text())
    assert config["transformers_version"] == {"eurobert": "5.3.0", "llama": "5.2.0"}[architecture]


def test_a_causal_rack_is_a_plain_llama(tmp_path):
    """Later tokens change nothing; as EuroBERT, which is bidirectional, it is refused."""
    ran = run_tiny(tmp_path, QUICK | {"objective": "clm", "mask_schedule": None})
    model = loaded(export(ran.directory, tmp_path / "hf"), "LlamaForCausalLM")
    assert torch.equal(logits(model), master_logits(ran.directory, ran.setup.spec, IDS))
    torch.testing.assert_close(logits(model)[:, :9], logits(model, IDS[:, :9]), rtol=1e-4, atol=1e-5)
    refused = stackwise("export", ran.directory, "--to", "hf", tmp_path / "other", "--architecture", "eurobert")
    assert (refused.exit_code, "this one is causal" in refused.stderr) == (2, True)


def test_shards_hold_the_same_weights(tmp_path, ran):
    """A small limit gives several files with an index; bf16 halves them."""
    whole = loaded(export(ran.directory, tmp_path / "whole"))
    target = export(ran.directory, tmp_path / "shards", "--max-shard-size", "40 kB")
    names = sorted(path.name for path in target.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 2
    assert all(path.stat().st_size < 45_000 for path in target.glob("*.safetensors"))
    assert torch.equal(logits(loaded(target)), logits(whole))
    half = loaded(export(ran.directory, tmp_path / "half", "--dtype", "bf16"))
    assert next(half.parameters()).dtype is torch.bfloat16
    for one, other in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())


def test_bytes_become_a_tokenizer_with_the_same_ids(tmp_path, ran):
    """For any text; the mask is a token of its own there, and never anything else."""
    from transformers import AutoTokenizer

    target = export(ran.directory, tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(target), load_tokenizer("bytes", mask_token=None)
    texts = [*STRANGE, TEXT.read_text(), "".join(map(chr, range(0x500)))]
    for text, (ids, _) in zip(texts, ours.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids.tolist()) == text
    assert (theirs.mask_token_id, theirs.pad_token_id, len(theirs)) == (256, 257, 258)
    assert theirs("a[MASK]b")["input_ids"] == [97, 256, 98]
    assert theirs(["ab", "c"], padding=True)["input_ids"] == [[97, 98], [99, 257]]


@pytest.mark.parametrize("architecture", ["eurobert", "llama"])
def test_a_tokenizer_json_gets_the_tokens_that_were_added(tmp_path, architecture):
    """Mask and padding have the ids that the rack knows them by, under either model's AutoTokenizer."""
    from transformers import AutoTokenizer

    path = write_tokenizer(tmp_path / "own")
    ran = run_tiny(tmp_path, QUICK | {"data.tokenizer": str(path)})
    target = export(ran.directory, tmp_path / "hf", "--architecture", architecture)
    theirs, ours = AutoTokenizer.from_pretrained(target), ran.setup.tokenizer
    for text, (ids, _) in zip(STRANGE, ours.encode(STRANGE), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.mask_id, ours.pad_id) == (300, 301)
    assert json.loads((target / "config.json").read_text())["mask_token_id"] == 300


LORA = {"use": "lora", "rank": 2}
RISING = {"strategy": "progressive", "rank_pattern": "increasing", "alpha_pattern": "decreasing"}
ADAPTERS = {
    "two of them": {"stack": LORA, "trunk": LORA},
    "other ranks a stack": {"stack": LORA | RISING},
    "some projections": {"stack": LORA | {"target_modules": ["q_proj", "down_proj"], "alpha": 3.0}},
    "dora": {"stack": LORA | {"use": "dora"}},
    "pissa": {"stack": LORA | {"use": "pissa"}},
    "ia3": {"stack": {"use": "ia3"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_are_loaded_by_peft(tmp_path, adapters):
    """By its own loader, over the exported weights: together they give the rack's logits, without them others."""
    from peft import PeftModel

    mode = {"use": "progressive", "trunk": "adapters"} if "trunk" in adapters else {"use": "progressive"}
    changes = {"adapter": adapters, "trainer_mode": mode, "training.adapter_lr": 0.1}
    ran = run_tiny(tmp_path, QUICK | changes)
    target = export(ran.directory, tmp_path / "hf")
    base = loaded(target)
    without = logits(base)
    first, *others = sorted(adapters)
    model = PeftModel.from_pretrained(base, target / "adapters" / first, adapter_name=first)
    for name in others:
        model.load_adapter(target / "adapters" / name, adapter_name=name)
    model.base_model.set_adapter([first, *others])
    card = (target / "README.md").read_text()
    assert f'model = PeftModel.from_pretrained(model, "hf/adapters/{first}", adapter_name="{first}")' in card
    assert all(f'model.load_adapter("hf/adapters/{name}", adapter_name="{name}")' in card for name in others)
    held = {name for stack in range(2) for name in RunDirectory(ran.directory).adapters(stack)}
    assert held == set(adapters)
    torch.testing.assert_close(logits(model), rack_logits(ran.directory), rtol=1e-4, atol=1e-5)
    assert (logits(model) - without).abs().max() > 1e-3


def rack_logits(run: Path) -> torch.Tensor:
    """A finished run's own logits, adapters and all."""
    finished = FinishedRun.open(run)
    forward, path = finished.forward, finished.routes[0].path
    forward.placement.bring(path, active=finished.active)
    hidden, context = forward.embed(0, IDS, torch.zeros(len(IDS))), forward.context(torch.ones_like(IDS))
    with torch.no_grad():
        for index in path:
            hidden = forward.through(index, hidden, context)
        return forward.placement.ends(path[-1]).logits(hidden, forward.placement.stack(path[-1]).norm)


def test_what_was_written_is_said(tmp_path, ran):
    """In lines, with the version that it needs, and as JSON that names every file."""
    result = stackwise("export", ran.directory, "--to", "hf", tmp_path / "hf", "--architecture", "llama")
    assert result.stdout.startswith(f"{tmp_path}/hf: LlamaForCausalLM of 4 blocks, ")
    assert "frozen stacks were at bf16; these are the full-precision weights" in result.stdout
    assert "It needs transformers 5.2.0 or newer.\nOlder versions load it without an error, and run it" in result.stdout
    said = json.loads(stackwise("export", ran.directory, "--to", "hf", tmp_path / "json", "--json").stdout)
    assert (said["architecture"], said["stacks"], said["blocks"]) == ("EuroBertForMaskedLM", 2, 4)
    assert sorted(said["files"]) == sorted(path.name for path in (tmp_path / "json").iterdir())
    assert said["parameters"] == sum(each.numel() for each in loaded(tmp_path / "json").parameters())
    assert "EuroBertForMaskedLM" in (tmp_path / "json" / "README.md").read_text()


def refused(run: Path, target: Path, *arguments: object) -> str:
    """Return the message of a refused export, which must leave nothing."""
    before = sorted(target.parent.rglob("*"))
    result = stackwise("export", run, "--to", "hf", target, *arguments)
    assert result.exit_code in (1, 2), result.output
    assert sorted(target.parent.rglob("*")) == before
    return result.stderr


REFUSED = {
    "banded": ({"trainer_mode": {"use": "banded", "cycles": 1}}, "its stacks serve 2 bands of mask fractions"),
    "own ends": (
        {"trainer_mode": {"use": "banded", "shared": "per_stack", "cycles": 1}},
        "an embedding and a head of its own",
    ),
    "time": ({"training.time": "input"}, 'told the time (training.time = "input")'),
    "no weights": ({"checkpoint.save_stacks": False}, "kept no weights"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_transformers_has_no_model_for_is_refused(tmp_path, changes, message):
    """Before anything is written."""
    run = run_tiny(tmp_path, QUICK | changes).directory
    (tmp_path / "out").mkdir()
    assert message in refused(run, tmp_path / "out" / "hf")


def test_a_run_that_is_not_there(tmp_path, ran):
    """With the one that was probably meant."""
    message = refused(ran.directory.with_name("tinny"), tmp_path / "hf")
    assert message.endswith(f"Did you mean {ran.directory}?\n")


def test_a_directory_with_something_in_it_is_left_alone(tmp_path, ran):
    """An empty one is filled."""
    target = tmp_path / "out" / "hf"
    target.mkdir(parents=True)
    export(ran.directory, target)
    before = hashes(target)
    assert "is there already, and isn't an empty directory" in refused(ran.directory, target)
    assert hashes(target) == before


def test_what_a_killed_export_left_is_deleted(tmp_path, ran):
    """The next one into the same directory sees to it; another process's that still runs stays."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, in_use = (tmp_path / f".model.{pid}.tmp" for pid in (gone.pid, os.getppid()))
    for directory in (left, in_use):
        (directory / "adapters").mkdir(parents=True)
    export(ran.directory, tmp_path / "model")
    assert not left.exists()
    assert in_use.exists()


def test_a_link_to_an_empty_directory_is_filled(tmp_path, ran):
    """The link's target is filled; every spelling of a path is resolved before anything is written."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(ran.directory, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()
    assert "real is there already" in refused(ran.directory, tmp_path / "not there" / ".." / "real")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "dtype", "said"),
    [
        (1e5, "fp16", "can't be held in fp16: 100000 at [0, 0]"),
        (3.4e38, "bf16", "can't be held in bf16: 3.4e+38 at [0, 0]"),
        (math.nan, "bf16", "isn't finite: nan at [0, 0]"),
        (math.inf, "fp32", "isn't finite: inf at [0, 0]"),
    ],
)
def test_a_number_that_a_format_cannot_hold(tmp_path, ran, number, dtype, said):
    """It would be infinite there, or is already; the tensor is named, and nothing is left."""
    run = Path(shutil.copytree(ran.directory, tmp_path / "run"))
    tensors = RunDirectory(run).read_stack(1)
    tensors["layers.0.mlp.up_proj.weight"][0, 0] = number
    RunDirectory(run).write_stack(1, tensors)
    (tmp_path / "out").mkdir()
    message = refused(run, tmp_path / "out" / "hf", "--dtype", dtype)
    assert f"model.layers.2.mlp.up_proj.weight {said}" in message


def test_a_depth_that_was_never_trained_is_refused(tmp_path, ran):
    """With those that were."""
    (tmp_path / "out").mkdir()
    assert "--depth 3: the head wasn't trained to read there. Of " in refused(
        ran.directory, tmp_path / "out" / "hf", "--depth", "3"
    )


@pytest.mark.parametrize("name", ["stacks/001.safetensors", "embedding.safetensors", "plan.json"])
def test_damage_is_named_and_nothing_is_left(tmp_path, ran, name):
    """A damaged file of the run stops the export, whichever it is."""
    run = Path(shutil.copytree(ran.directory, tmp_path / "run"))
    content = bytearray((run / name).read_bytes())
    content[-9] ^= 4
    (run / name).write_bytes(content)
    (tmp_path / "out").mkdir()
    assert f"{run}/{name}" in refused(run, tmp_path / "out" / "hf")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_heads", 0, "1 or more, found 0"),
        ("d_model", -32, "1 or more, found -32"),
        ("seq_len", "x", 'an integer, found the string "x"'),
        ("vocab_size", None, "an integer, found nothing"),
        ("n_heads", 3, "a divisor of d_model"),
    ],
)
def test_a_plan_that_no_run_wrote(tmp_path, ran, key, value, said):
    """One message with the file, though its checksum is right."""
    run = RunDirectory(Path(shutil.copytree(ran.directory, tmp_path / "run")))
    plan = run.read_json("plan.json")
    run.write_json("plan.json", {**plan, "rack": {**plan["rack"], key: value}})
    (tmp_path / "out").mkdir()
    message = refused(run.path, tmp_path / "out" / "hf")
    assert f"{run.path}/plan.json: expected rack.{key} to be {said}" in message


def test_a_run_that_broke_off_is_refused(tmp_path, ran):
    """Its weights may go on training."""
    run = Path(shutil.copytree(ran.directory, tmp_path / "run"))
    RunDirectory(run).manifest.drop("finished.json")
    (tmp_path / "out").mkdir()
    assert f'"stackwise run {run}" resumes it' in refused(run, tmp_path / "out" / "hf")


def test_a_disk_that_is_full_leaves_nothing(tmp_path, ran, monkeypatch):
    """Files that were written before are deleted, and the message names the file."""
    from stackwise_huggingface import writing

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(writing, "publish_text", full)
    (tmp_path / "out").mkdir()
    result = stackwise("export", ran.directory, "--to", "hf", tmp_path / "out" / "hf")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_one_stack_is_in_memory_at_a_time(tmp_path, ran, monkeypatch):
    """A stack is freed before the next one is read; its tensors share the pages of its file."""
    alive: list[weakref.ref] = []
    most: list[int] = []
    read, read_stack = RunDirectory.read_tensors, RunDirectory.read_stack

    def watched(self, name):
        tensors = read(self, name)
        alive.extend(map(weakref.ref, tensors.values()))
        return tensors

    def counting(self, index):
        most.append(sum(each() is not None for each in alive))
        return read_stack(self, index)

    monkeypatch.setattr(RunDirectory, "read_tensors", watched)
    monkeypatch.setattr(RunDirectory, "read_stack", counting)
    export(ran.directory, tmp_path / "hf")
    assert most == [0, 0]


@pytest.mark.slow
def test_the_script_of_the_page_scores_text_without_stackwise(tmp_path, ran):
    """docs/pretrained.md's, of transformers alone: its numbers are those of the rack's own logits."""
    target = export(ran.directory, tmp_path / "hf")
    page = (ROOT / "docs" / "pretrained.md").read_text()
    script = re.search(r"<!-- file: score\.py -->\n```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "score.py").write_text(script[1])
    check = (
        "import runpy, sys\nsys.argv = ['score.py', *sys.argv[1:]]\nrunpy.run_path('score.py', run_name='__main__')\n"
        "assert not [name for name in sys.modules if name.startswith('stackwise')]"
    )
    text = "In the beginning"
    command = [sys.executable, "-c", check, str(target), text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    ids = torch.tensor(list(text.encode()))
    masked = ids.repeat(len(ids), 1).fill_diagonal_(256)
    ours = master_logits(ran.directory, ran.setup.spec, masked).diagonal(dim1=0, dim2=1).T.clone()
    ours[:, 256] = -torch.inf
    losses = torch.nn.functional.cross_entropy(ours, ids, reduction="none")
    assert [float(line.split()[-1]) for line in lines[:-1]] == pytest.approx(losses.tolist(), abs=1e-5)
    assert lines[-1] == f"{losses.mean():.4f} nats a token"
