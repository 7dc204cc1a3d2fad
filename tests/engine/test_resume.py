"""A run that broke off goes on from its last checkpoint, and ends with the same bits as one that didn't."""

from pathlib import Path

import pytest
import torch

from stackwise_core.engine.events.events import (
    EnvironmentChanged,
    StepDone,
)
from stackwise_core.engine.runs.software import differences
from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.manifest import Manifest
from tests.changed_files import flip
from tests.interrupted_runs import Broken, break_everywhere, engine
from tests.run_bits import bits, measured
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

LORA = {"use": "lora", "rank": 2, "dropout": 0.1}
RUNS = {
    "blockwise, boundaries kept on disk": {
        "trainer_mode": {"use": "blockwise"},
        "cache_backend": {"use": "disk", "dtype": "bf16", "keep": "rack", "keep_time_steps": 2},
    },
    "blockwise, boundaries made anew": {"trainer_mode": {"use": "blockwise", "start": "copy"}, "cache_backend": None},
    "blockwise, adapters over one boundary": {
        "trainer_mode": {"use": "blockwise"},
        "precision": {"active": "fp32", "trunk": "nvfp4"},
        "adapter": {"stack": LORA},
        "rack.stacks": 2,
    },
    "blockwise, adapters, boundaries kept on disk": {
        "trainer_mode": {"use": "blockwise"},
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": LORA},
        "cache_backend": {"use": "disk", "keep": "rack", "keep_time_steps": 3},
    },
    "blockwise, ends early": {
        "trainer_mode": {"use": "blockwise"},
        "rack.stacks": 2,
        "training.patience": 1,
        "training.block_lr": 0.2,
        "evaluation": {"every": 1, "sequences": 4},
    },
    "progressive, two adapters on nf4": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.3},
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": LORA, "trunk": LORA},
        "rack.stacks": 2,
    },
    "progressive, adapters that are merged": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
        "precision": {"active": "bf16", "trunk": "nvfp4"},
        "adapter": {"trunk": LORA, "growth": "merge"},
    },
    "progressive, downwards": {
        "trainer_mode": {"use": "progressive", "building": "prepend", "start": "zero_output", "target_stacks": 3},
    },
    "copies, of which adapters train": {
        "trainer_mode": {"use": "blockwise", "start": "copy"},
        "precision": {"active": "fp32", "trunk": "fp8"},
        "adapter": {"stack": LORA, "active": "adapters"},
        "rack.stacks": 2,
    },
    "fused, 8-bit optimizer, accumulation": {
        "trainer_mode": {"use": "fused", "fusion": "trainable"},
        "optimizer": {"use": "adamw_8bit"},
        "training.gradient_accumulation": 2,
        "rack.d_model": 64,  # large enough for matrices whose moments are in 8 bits
        "rack.d_ff": 128,
        "rack.stacks": 2,
    },
    "blockwise, fp16 with a loss scaler": {
        "trainer_mode": {"use": "blockwise"},
        "precision": {"active": {"use": "fp16", "cpu_compute": "fp16", "initial_scale": 2.0**40}},
        "rack.tie_embeddings": False,
        "rack.stacks": 2,
        "training.time": "input",
    },
    "fused, trainable": {"trainer_mode": {"use": "fused", "fusion": "trainable"}, "training.masks": "resampled"},
    "fused, masters restored": {
        "trainer_mode": {"use": "fused", "fusion": "trainable", "restore": True},
        "precision": {"active": "fp32", "trunk": "int8"},
    },
    "end to end, stackwise": {
        "trainer_mode": {"use": "end_to_end", "scope": "stackwise", "cycles": 2},
        "rack.stacks": 2,
    },
    "banded, own ends": {
        "trainer_mode": {"use": "banded", "shared": "per_stack", "cycles": 2},
        "rack.tie_embeddings": False,
        "training.head": "trains",
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_breaks_off_everywhere_ends_with_the_same_bits(tmp_path, run):
    """Broken off within and after each phase in turn, all of its files are an undisturbed run's."""
    changes = {"training.steps_per_stack": 4, "checkpoint.steps": 1} | RUNS[run]
    undisturbed = run_tiny(tmp_path, changes)
    directory, lives, result = break_everywhere(tmp_path, changes)
    assert directory != undisturbed.directory
    expected: list[list[str]] = []
    for planned in undisturbed.plan.phases:
        name = planned.phase.name
        expected += [[name], [f"{name} + 1" if planned.steps > 1 else name]]
    assert lives == [*expected, []]
    assert bits(directory) == bits(undisturbed.directory)
    assert result.likelihoods == undisturbed.result.likelihoods
    ours, theirs = (
        [(phase.name, phase.steps, phase.first_loss, phase.last_loss) for phase in each.phases]
        for each in (result, undisturbed.result)
    )
    assert ours == theirs
    assert measured(directory) == measured(undisturbed.directory)


TWO = {"rack.stacks": 2, "training.steps_per_stack": 2, "precision": {"active": "fp32", "trunk": "nvfp4"}}


@pytest.fixture
def broken(tmp_path) -> Path:
    """A run of two stacks that broke off within its second phase, when the first was kept for the trunk."""

    def listen(event) -> None:
        if isinstance(event, StepDone) and event.planned.phase.trains == {1}:
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, TWO, listen).run()
    directory = tmp_path / "runs" / "tiny"
    assert (directory / "trunk/000.safetensors").is_file()
    assert not (directory / "stacks/001.safetensors").exists()
    return directory


def go_on(tmp_path, directory):
    return engine(tmp_path, TWO, lambda event: None, directory).run()


@pytest.mark.parametrize("name", ["stacks/000.safetensors", "embedding.safetensors", "progress.json", "plan.json"])
def test_a_damaged_file_of_a_run_that_goes_on_is_named_and_refused(tmp_path, broken, name):
    """Nothing is trained on top of flipped bits."""
    (broken / "trunk/000.safetensors").unlink()  # so that the master is needed
    flip(broken / name)
    with pytest.raises(StackwiseError, match=rf"{name}: damaged"):
        go_on(tmp_path, broken)


def test_a_damaged_frozen_stack_can_be_made_again(tmp_path, broken):
    """It is refused with what to do: without the file it is made from the master again, to the same bits."""
    frozen = broken / "trunk/000.safetensors"
    whole = frozen.read_bytes()
    flip(frozen)
    with pytest.raises(StackwiseError, match=r"trunk/000.*Delete the file, and it is made again from stacks/000"):
        go_on(tmp_path, broken)
    frozen.unlink()
    go_on(tmp_path, broken)
    assert frozen.read_bytes() == whole


def test_what_a_killed_process_left_is_deleted(tmp_path, broken):
    """Half-written files and boundaries that nobody uses any more are gone in the end."""
    for name in ("stacks/001.safetensors.9.new", "stacks/.001.safetensors.9.new.77.tmp", f"cache/{'0' * 32}/shard"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_text("half")
    go_on(tmp_path, broken)
    found = {str(path.relative_to(broken)) for path in broken.rglob("*") if path.is_file()}
    assert found == {*Manifest(broken), "manifest.json", "metrics.jsonl"}


def test_another_environment_is_told(tmp_path, broken):
    """Bits may depend on the threads, so that a run which goes on says that they are others; a new run says nothing."""
    events: list = []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        engine(tmp_path, TWO, events.append, broken).run()
    finally:
        torch.set_num_threads(threads)
    (told,) = (event.differences for event in events if isinstance(event, EnvironmentChanged))
    assert told == (f"threads: {threads} -> {threads + 1}",)
    assert not any(isinstance(event, EnvironmentChanged) for event in run_tiny(tmp_path, TWO).events)


@pytest.mark.parametrize("before", [[], "text", {"torch": "\x1b[31m" + "x" * 5000}])
def test_differences_of_an_environment_that_no_run_wrote_are_short_and_plain(before):
    """Whatever stands in the file."""
    (line,) = differences(before, {"torch": "2"})
    assert len(line) < 200
    assert line.isprintable()
