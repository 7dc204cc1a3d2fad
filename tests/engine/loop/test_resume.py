"""A run that broke off goes on from its last checkpoint, and ends with the same bits as one that didn't."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.events import (
    EnvironmentChanged,
    PhaseDone,
    PhaseResumed,
    PhaseStarted,
    RunStarted,
    StepDone,
)
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.software import differences
from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.manifest import Manifest
from tests.tiny import run_tiny, tiny_config

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
MEASURED = {"plan.json", "progress.json", "finished.json", "metrics.jsonl", "manifest.json"}


class Broken(Exception):
    """The run ends here, as it would by a fault."""


def bits(directory: Path) -> dict[str, str]:
    """A hash of every file that is neither a measurement nor a boundary."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name not in MEASURED and not name.startswith("cache/")
    }


def measured(directory: Path) -> list[dict]:
    """The lines of metrics.jsonl without what the clock and the memory say, and without counts of the cache."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    unlike = ("seconds", "tokens_per_second", "peak_bytes")
    return [
        {key: value for key, value in line.items() if key not in unlike and not key.startswith("boundaries_")}
        for line in lines
    ]


def engine(tmp_path: Path, changes, listener, begun: Path | None = None) -> Engine:
    """What a process of its own would make of the configuration; its random numbers begin elsewhere, too."""
    torch.manual_seed(torch.seed())
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    return Engine(setup, make_plan(setup), registry, listener, None if begun is None else RunDirectory(begun))


def break_everywhere(tmp_path: Path, changes) -> tuple[Path, list[list[str]], object]:
    """A run that breaks off in each phase's second step and after it, with a checkpoint a step.

    Its directory, the phases of each life (with the step from which it goes on), and its result.
    """
    directory, lives, result, after_phase = None, [], None, False

    def listen(event) -> None:
        nonlocal directory
        if isinstance(event, RunStarted):
            directory = event.directory
        elif isinstance(event, PhaseStarted):
            lives[-1].append(event.planned.phase.name)
        elif isinstance(event, PhaseResumed):
            lives[-1][-1] += f" + {event.step}"
        elif isinstance(event, PhaseDone if after_phase else StepDone) and (
            after_phase or event.step == min(2, event.planned.steps)
        ):
            raise Broken

    while result is None:
        lives.append([])
        try:
            result = engine(tmp_path, changes, listen, directory).run()
        except Broken:
            assert not any(Manifest(directory).problem(name) for name in Manifest(directory))
            after_phase = not after_phase
    return directory, lives, result


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)


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
