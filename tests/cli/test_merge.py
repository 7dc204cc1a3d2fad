import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stackwise_core.cli import main, pulse
from stackwise_core.config.load import load_run
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import UsageError
from stackwise_core.run_files.names import stack_file
from tests.cli.pulse_at_the_end import AtTheEnd
from tests.hashes import hashes
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

LORA = {"use": "lora", "rank": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two adapters on the lower of two stacks over a trunk in nf4, one on the upper."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 3,
        "training.adapter_lr": 0.1,
        "precision": {"active": "fp32", "trunk": "qlora"},
        "adapter": {"stack": LORA, "trunk": LORA},
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
    }
    return run_tiny(tmp_path_factory.mktemp("run"), changes).directory


def stackwise(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


def done(*arguments: object) -> None:
    result = stackwise(*arguments)
    assert result.exit_code == 0, result.output


def likelihood(run: Path) -> float:
    finished = FinishedRun.open(run)
    return finished.likelihoods(finished.evaluation(*finished.text(None), draws=2))[-1].nats_per_token


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory) -> Path:
    """The run's copy, merged; the run is as it was."""
    before, target = hashes(run), tmp_path_factory.mktemp("merged") / "merged"
    done("merge", run, "--to", target)
    assert hashes(run) == before
    return target


def test_the_merged_masters_have_the_likelihood_of_the_run_in_full(tmp_path, run, merged):
    """In fp32, with the adapters beside the weights or in them; without them it is another."""
    done("restore", run, "--precision", "fp32", "--to", tmp_path / "beside")
    done("restore", merged, "--precision", "fp32", "--to", tmp_path / "within")
    beside, within = likelihood(tmp_path / "beside"), likelihood(tmp_path / "within")
    assert within == pytest.approx(beside, abs=1e-5)
    directory = RunDirectory(tmp_path / "beside")
    for stack in range(2):
        for name in directory.adapters(stack):
            directory.drop_adapter(stack, name)
    assert abs(likelihood(tmp_path / "beside") - beside) > 1e-3


def test_the_copy_has_no_adapters_and_says_so(run, merged):
    """Neither files, nor in its configuration, where qlora is the nf4 that it means."""
    assert len(list(run.glob("adapters/*/*/adapter_config.json"))) == 3
    assert not [path for path in merged.glob("adapters/**/*") if path.is_file()]
    config, _ = load_run(merged)
    assert (config.adapter.stack, config.adapter.trunk, config.precision.trunk.use) == (None, None, "nf4")
    assert stackwise("verify", merged).exit_code == 0
    assert torch.isfinite(torch.tensor(likelihood(merged)))


def test_the_copy_is_whole_without_being_written_to(merged):
    """Its stacks are quantised from the merged masters already, so that using it changes nothing."""
    before = hashes(merged)
    assert {"trunk/000.safetensors", "trunk/001.safetensors"} <= before.keys()
    likelihood(merged)
    assert hashes(merged) == before


def test_another_run_starts_from_the_copy_only(tmp_path, run, merged):
    """The original is refused with what to do: its weights alone aren't what it learnt."""
    changes = {"rack.stacks": 3, "training.steps_per_stack": 1}
    with pytest.raises(UsageError, match=f'has some beside its weights\n.*"stackwise merge {run}" folds them into'):
        run_tiny(tmp_path, changes | {"rack.init_from": str(run)})
    more = run_tiny(tmp_path, changes | {"rack.init_from": str(merged)})
    for stack in range(2):
        name = stack_file(stack)
        assert (more.directory / name).read_bytes() == (merged / name).read_bytes()


def test_the_copy_stands_beside_the_run_by_default(tmp_path, run, monkeypatch):
    """As RUN-merged; what was merged is listed."""
    monkeypatch.chdir(shutil.copytree(run, tmp_path / "first"))
    result = stackwise("merge", ".", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "run": str(tmp_path / "first-merged"),
        "merged": [{"stack": stack, "adapter": name} for stack, name in ((0, "stack"), (0, "trunk"), (1, "stack"))],
    }


def test_a_line_says_what_was_done(tmp_path, run):
    """The line has the number of adapters, and the copy."""
    result = stackwise("merge", run, "--to", tmp_path / "copy")
    assert result.stdout == f"{tmp_path}/copy: 3 adapters folded into the weights of 2 stacks.\n"


def test_what_trained_last_stays_at_the_active_precision(tmp_path):
    """Merging changes no precision: the copy has the run's own likelihood."""
    changes = {
        "rack.stacks": 2,
        "training.steps_per_stack": 3,
        "training.adapter_lr": 0.1,
        "precision": {"active": "fp32", "trunk": "nvfp4"},
        "adapter": {"stack": LORA, "attach": "birth"},
        "trainer_mode": {"use": "end_to_end"},
    }
    run = run_tiny(tmp_path, changes).directory
    done("merge", run)
    assert FinishedRun.open(run).active == FinishedRun.open(Path(f"{run}-merged")).active == {0, 1}
    assert likelihood(Path(f"{run}-merged")) == pytest.approx(likelihood(run), abs=1e-5)


def test_a_run_without_adapters_has_nothing_to_merge(tmp_path, merged):
    """The merged one itself, for example."""
    result = stackwise("merge", merged, "--to", tmp_path / "copy")
    assert (result.exit_code, result.stderr) == (2, f"{merged} has no adapters to merge.\n")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["stacks/001.safetensors", "adapters/000/trunk/adapter_model.safetensors"])
def test_damage_is_named_and_leaves_no_copy(tmp_path, run, name):
    """Damage to masters and adapters is named."""
    damaged = Path(shutil.copytree(run, tmp_path / "runs" / "first"))
    content = bytearray((damaged / name).read_bytes())
    content[-3] ^= 1
    (damaged / name).write_bytes(content)
    result = stackwise("merge", damaged)
    assert result.exit_code == 1
    assert result.stderr == f"{damaged}/{name}: damaged; its checksum isn't the one in manifest.json.\n"
    assert [path.name for path in damaged.parent.iterdir()] == ["first"]


def test_a_run_that_broke_off_is_refused(tmp_path, run):
    """Its adapters may go on training."""
    broken = Path(shutil.copytree(run, tmp_path / "first"))
    RunDirectory(broken).manifest.drop("finished.json")
    result = stackwise("merge", broken)
    assert result.exit_code == 2
    assert f'"stackwise run {broken}" resumes it' in result.stderr


def test_merging_is_heard_of(run, tmp_path, monkeypatch):
    """On stderr, with the stack that it is at."""
    monkeypatch.setattr(pulse, "Pulse", AtTheEnd)
    result = stackwise("merge", run, "--to", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("merging: stack 1 of 2, ")
