import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stackwise_core import load_rack
from stackwise_core.cli import main
from stackwise_core.config.load import load_run
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.rack import Stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from tests.hashes import hashes
from tests.tiny import Ran, run_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    """A plain run of two stacks in fp32, the second of which trained last."""
    return run_tiny(tmp_path_factory.mktemp("ran"), {"rack.stacks": 2, "training.steps_per_stack": 3})


def restore(*arguments: object):
    return CliRunner().invoke(main, ["restore", *map(str, arguments)])


def restored(run: Path, target: Path, *arguments: object) -> Path:
    result = restore(run, "--to", target, *arguments)
    assert result.exit_code == 0, result.output
    return target


def stack_of(run: Path, stack: int) -> Placement:
    """A finished run's rack with one of its stacks in memory."""
    finished = FinishedRun.open(run)
    finished.forward.placement.bring((stack,), active=finished.active)
    return finished.forward.placement


def tensors(run: Path, stack: int) -> dict[str, torch.Tensor]:
    """A stack's weights as a finished run computes with them."""
    return stack_of(run, stack).tensors(stack)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether names, number formats and bits are equal."""

    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return ours.keys() == theirs.keys() and all(
        ours[name].dtype is theirs[name].dtype and raw(ours[name]) == raw(theirs[name]) for name in ours
    )


def likelihood(run: Path) -> float:
    finished = FinishedRun.open(run)
    return finished.likelihoods(finished.evaluation(*finished.text(None), draws=2))[-1].nats_per_token


@pytest.mark.parametrize(
    ("precision", "difference"),
    [("fp32", 0), ("bf16", 0.01), ("nf4", 0.1), ('{ use = "nf4", double_quant = false }', 0.1), ("nvfp4", 0.1)],
)
def test_a_restored_rack_is_what_its_masters_come_to_at_the_precision(tmp_path, ran, precision, difference):
    """Each stack's tensors are those that the plugin makes of the master by hand; it is evaluated, and close."""
    before = hashes(ran.directory)
    copy = restored(ran.directory, tmp_path / "copy", "--precision", precision)
    assert hashes(ran.directory) == before
    finished = FinishedRun.open(copy)
    assert finished.active == frozenset()
    for stack in range(2):
        by_hand = Stack(finished.parts.spec, stack)
        by_hand.load_state_dict(RunDirectory(ran.directory).read_stack(stack))
        plugin = finished.parts.formats.trunk
        plugin.prepare(by_hand.requires_grad_(False), trainable=False)
        assert same(tensors(copy, stack), plugin.to_tensors(by_hand))
    off = abs(likelihood(copy) - likelihood(ran.directory))
    assert off <= difference
    assert (off > 0) == (precision != "fp32")
    assert CliRunner().invoke(main, ["verify", str(copy)]).exit_code == 0


def test_only_the_stacks_that_are_named_change(tmp_path, ran):
    """The others stay at their precision, also the one that trained last."""
    copy = restored(ran.directory, tmp_path / "copy", "--precision", "nvfp4", "--stacks", "0")
    assert not same(tensors(copy, 0), tensors(ran.directory, 0))
    assert same(tensors(copy, 1), tensors(ran.directory, 1))
    config, _ = load_run(copy)
    assert (config.precision.trunk, config.precision.stacks[0].use) == (None, "nvfp4")
    again = restored(copy, tmp_path / "again", "--precision", "bf16", "--stacks", "0,1")
    assert FinishedRun.open(again).active == frozenset()
    for stack in range(2):
        assert all(tensor.dtype is torch.bfloat16 for tensor in tensors(again, stack).values() if tensor.ndim > 1)


def test_a_quantised_run_comes_back_in_full(tmp_path, ran):
    """From the copy's masters as from the run's own: nothing was lost by the quantising between."""
    quantised = restored(ran.directory, tmp_path / "quantised", "--precision", "nvfp4")
    back = restored(quantised, tmp_path / "back", "--precision", "fp32")
    for stack in range(2):
        assert same(tensors(back, stack), tensors(ran.directory, stack))
    assert not list(back.glob("trunk/*"))
    assert likelihood(back) == likelihood(ran.directory)


def test_training_goes_on_from_it(tmp_path, ran):
    """A copy is what another run starts from: over a trunk at another precision, with one stack more."""
    copy = restored(ran.directory, tmp_path / "copy", "--precision", "nvfp4")
    changes = {
        "rack.stacks": 3,
        "rack.init_from": str(copy),
        "precision": {"active": "bf16", "trunk": "fp8"},
        "training.steps_per_stack": 2,
    }
    more = run_tiny(tmp_path, changes)
    assert [planned.phase.trains for planned in more.plan.phases] == [{2}]
    for stack in range(2):  # from the masters, not from the codes
        ours = RunDirectory(more.directory).read_stack(stack)
        assert same(ours, RunDirectory(ran.directory).read_stack(stack))


def test_a_run_with_adapters_keeps_them(tmp_path):
    """They stand on the restored weights."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 2,
        "precision": {"active": "fp32", "trunk": "nvfp4"},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
        "training.adapter_lr": 0.1,
    }
    run = run_tiny(tmp_path, changes).directory
    copy = restored(run, tmp_path / "copy", "--precision", "fp32")
    for stack in range(2):
        ours, theirs = (stack_of(path, stack).adapter_weights(stack) for path in (copy, run))
        assert ours
        assert same(ours, theirs)
        assert same(tensors(copy, stack), RunDirectory(run).read_stack(stack))


def test_the_copy_stands_beside_the_run_by_default(tmp_path, ran, monkeypatch):
    """As RUN-P, also if RUN is the working directory."""
    run = shutil.copytree(ran.directory, tmp_path / "first")
    monkeypatch.chdir(run)
    result = restore(".", "--precision", "bf16", "--json")
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert read["run"] == str(tmp_path / "first-bf16")
    assert [(stack["stack"], stack["precision"]) for stack in read["stacks"]] == [(0, "bf16"), (1, "bf16")]
    assert all(stack["bytes"] < 0.6 * stack["bytes_in_full"] for stack in read["stacks"])


def test_a_table_says_what_each_stack_takes(tmp_path, ran):
    """And the last line what to do with it."""
    result = restore(ran.directory, "--precision", "nvfp4", "--stacks", "1", "--to", tmp_path / "copy")
    assert result.exit_code == 0, result.output
    heading, zero, one, _, last = result.stdout.splitlines()
    assert heading.split() == ["stack", "precision", "in", "full", "restored"]
    assert (zero.split()[:2], one.split()[:2]) == (["0", "fp32"], ["1", "nvfp4"])
    assert last == f'{tmp_path}/copy holds the rack. "stackwise evaluate {tmp_path}/copy" measures it.'


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "nf5"], 2, '--precision nf5: unknown precision "nf5"\n    help: did you mean "nf4"?'),
        (
            ["--precision", '{ use = "nf4", doubel_quant = true }'],
            2,
            'doubel_quant: unknown option of precision "nf4"\n    help: did you mean double_quant?',
        ),
        (["--precision", "nf4", "--stacks", "2"], 2, "--stacks: stack 2 isn't there; {run} has 0 to 1."),
        (["--precision", "nf4", "--stacks", "0;1"], 2, "expected stacks such as 0,2"),
        (["--precision", "bf16", "--to", "{run}"], 2, "{run} is there already. Choose another directory with --to."),
        pytest.param(["--precision", "bf16", "--device", "cuda"], 3, "cuda", marks=pytest.mark.cpu),
        ([], 2, "Missing option '--precision'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_copied(ran, arguments, code, message):
    """With the nearest right thing."""
    before = hashes(ran.directory.parent)
    result = restore(ran.directory, *(each.replace("{run}", str(ran.directory)) for each in arguments))
    assert result.exit_code == code, result.output
    assert message.replace("{run}", str(ran.directory)) in result.stderr
    assert (result.stdout, hashes(ran.directory.parent)) == ("", before)


@pytest.fixture
def run(tmp_path, ran) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(ran.directory, tmp_path / "run"))


def test_a_damaged_master_is_named_and_refused(tmp_path, run):
    """There is no copy then."""
    content = bytearray((run / "stacks/001.safetensors").read_bytes())
    content[-3] ^= 16
    (run / "stacks/001.safetensors").write_bytes(content)
    result = restore(run, "--precision", "bf16")
    assert result.exit_code == 1
    assert result.stderr == f"{run}/stacks/001.safetensors: damaged; its checksum isn't the one in manifest.json.\n"
    assert [path.name for path in tmp_path.iterdir() if path.name != "tokens"] == ["run"]


def test_a_precision_that_the_rack_cannot_have_leaves_no_copy(tmp_path):
    """nf4 can't hold rows of 48 weights; the reason is given, and half a copy isn't."""
    narrow = {"rack": {"stacks": 1, "blocks_per_stack": 1, "d_model": 48, "n_heads": 2}, "training.steps_per_stack": 1}
    run = run_tiny(tmp_path, narrow).directory
    result = restore(run, "--precision", "nf4")
    assert result.exit_code == 2
    assert "nf4 can't hold this rack: d_model = 48" in result.stderr
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_run_that_broke_off_is_refused(run):
    """The refusal says how to resume the run."""
    RunDirectory(run).manifest.drop("finished.json")
    result = restore(run, "--precision", "bf16")
    assert result.exit_code == 2
    assert f'never finished: there is no finished.json. "stackwise run {run}" resumes it' in result.stderr


def test_what_is_no_run_is_refused(tmp_path):
    """There is nothing to restore."""
    result = restore(tmp_path, "--precision", "bf16")
    assert result.exit_code == 2
    assert "expected the directory of a run" in result.stderr


def test_a_weight_beyond_the_precision_leaves_no_copy(tmp_path, ran):
    """70000 is no fp16: restore, load_rack and what starts from it say which stack and tensor, and bf16 holds it."""
    run = Path(shutil.copytree(ran.directory, tmp_path / "run"))
    weights = RunDirectory(run).read_stack(1)
    weights["layers.0.mlp.up_proj.weight"][2, 3] = 70000.0
    RunDirectory(run).write_stack(1, weights)
    said = "stack 1, layers.0.mlp.up_proj.weight can't be held in fp16: 70000 at [2, 3]"
    result = restore(run, "--precision", "fp16", "--to", tmp_path / "copy")
    assert (result.exit_code, said in result.stderr) == (1, True)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(StackwiseError, match=re.escape(said)):
        load_rack(run, precision="fp16")
    changes = {"rack.stacks": 3, "rack.init_from": str(run), "precision": {"active": "fp32", "trunk": "fp16"}}
    with pytest.raises(StackwiseError, match=re.escape(said)):
        run_tiny(tmp_path, changes | {"training.steps_per_stack": 1})
    assert RunDirectory(restored(run, tmp_path / "copy", "--precision", "bf16")).has_stack(1)


def test_a_rack_that_is_not_finite_has_no_likelihood(tmp_path, ran):
    """One error with the stack and the tensor, and no NaN on stdout, also as JSON."""
    run = Path(shutil.copytree(ran.directory, tmp_path / "run"))
    weights = RunDirectory(run).read_stack(1)
    weights["layers.0.mlp.up_proj.weight"][2, 3] = float("nan")
    RunDirectory(run).write_stack(1, weights)
    for options in ([], ["--json"]):
        result = CliRunner().invoke(main, ["evaluate", str(run), *options])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "stack 1, layers.0.mlp.up_proj.weight isn't finite: nan at [2, 3] (1 of 4096 numbers are like that).\n"
        )
