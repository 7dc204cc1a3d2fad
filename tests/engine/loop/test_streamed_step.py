"""Checkpoints and files of phases that are streamed."""

import errno
import math
import os
import re
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_core.engine.events.events import BadStep, Event, PhaseResumed, StepDone
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.offload import disk
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.run_files.manifest import Manifest
from tests.changed_files import flip
from tests.interrupted_runs import Broken, break_everywhere, engine
from tests.run_bits import bits, measured
from tests.tiny import run_tiny, telling

pytestmark = pytest.mark.slow

STREAMED = {
    "trainer_mode": {"use": "end_to_end"},
    "training.steps_per_stack": 2,
    "training.residency": "stream",
    "training.offload": "disk",
    "checkpoint.steps": 1,
}


def engine_at(tmp_path: Path, changes, step: int) -> Path:
    """Interrupt a run after a step, and return its directory."""

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step + 1:
            raise Broken

    run = engine(tmp_path, changes, listen)
    with pytest.raises(Broken):
        run.run()
    return run.directory


@pytest.mark.parametrize("offload", ["disk", "memory"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_an_interrupted_phase_resumes_to_the_same_bits(tmp_path, offload, optimizer):
    """From its checkpoint, in a directory that was moved meanwhile."""
    changes = STREAMED | {"training.offload": offload, "optimizer": {"use": optimizer}, "rack.d_model": 64}
    undisturbed = run_tiny(tmp_path / "undisturbed", changes)
    directory = engine_at(tmp_path / "first", changes, 3)
    moved = tmp_path / "second" / "tiny"
    moved.parent.mkdir()
    directory.rename(moved)
    events: list[Event] = []
    engine(tmp_path / "second", changes, events.append, moved).run()
    assert [event.step for event in events if isinstance(event, PhaseResumed)] == [3]
    expected, found = bits(undisturbed.directory), bits(moved)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}
    assert measured(moved) == measured(undisturbed.directory)


@pytest.mark.parametrize("offload", ["disk", "memory"])
def test_growing_runs_are_interrupted_and_resumed_everywhere(tmp_path, offload):
    """Phases with stacks that join, adapters over a quantised trunk, and a finale of all adapters."""
    lora = {"use": "lora", "rank": 2, "dropout": 0.1}
    changes = STREAMED | {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.5},
        "training.offload": offload,
        "training.steps_per_stack": 10,
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": lora, "trunk": lora},
    }
    directory, lives, _ = break_everywhere(tmp_path / "broken", changes)
    assert len(lives) > 6
    undisturbed = run_tiny(tmp_path / "undisturbed", changes)
    expected, found = bits(undisturbed.directory), bits(directory)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}


def test_a_checkpoint_is_in_standard_files(tmp_path):
    """Weights and moments of each stack by name, in safetensors files with checksums."""
    directory = engine_at(tmp_path, STREAMED, 2)
    files = {path.relative_to(directory / "resume").as_posix() for path in directory.glob("resume/**/*.safetensors")}
    stacks = [f"0000-000000002/{kind}-{stack:03d}.safetensors" for kind in ("weights", "moments") for stack in range(3)]
    assert files == {"0000-000000002.safetensors", *stacks}
    assert not any(Manifest(directory).problem(name) for name in Manifest(directory))
    weights = load_file(directory / "resume" / "0000-000000002" / "weights-001.safetensors")
    assert weights.keys() == load_file_of_a_finished_stack(tmp_path / "finished").keys()


def load_file_of_a_finished_stack(directory: Path):
    return load_file(run_tiny(directory, STREAMED).directory / "stacks" / "001.safetensors")


def test_there_are_two_of_everything_on_the_disk_at_most(tmp_path):
    """Of weights and moments, at every step, however many checkpoints there were."""
    sizes: list[int] = []

    def measure(event: Event, directory: Path) -> None:
        if isinstance(event, StepDone):
            files = [*directory.glob("offload/weights-*"), *directory.glob("offload/moments-*")]
            files += [*directory.glob("resume/*/*.safetensors")]
            sizes.append(sum(path.stat().st_size for path in files))

    run_tiny(tmp_path, STREAMED | {"training.steps_per_stack": 6, "checkpoint.steps": 3}, telling(measure))
    # Gradients and boundaries come on top, and last for a step.
    assert max(sizes) <= 2 * sizes[0] * 1.01
    assert max(sizes) >= 1.9 * sizes[0]


@pytest.mark.parametrize("kind", ["weights", "moments"])
def test_damage_is_named_and_costs_the_phase_alone(tmp_path, kind):
    """A flipped bit in a stack's file: the phase begins anew, to the same bits."""
    undisturbed = run_tiny(tmp_path / "undisturbed", STREAMED)
    directory = engine_at(tmp_path / "damaged", STREAMED, 2)
    (path,) = directory.glob(f"resume/*/{kind}-001.safetensors")
    flip(path)
    events: list[Event] = []
    engine(tmp_path / "damaged", STREAMED, events.append, directory).run()
    (resumed,) = [event for event in events if isinstance(event, PhaseResumed)]
    assert resumed.step == 0
    assert path.name in resumed.damaged[0]
    expected, found = bits(undisturbed.directory), bits(directory)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}


@pytest.mark.parametrize("kind", ["boundary", "descent", "gradients", "moments", "weights"])
def test_a_full_disk_is_one_error_and_costs_nothing(tmp_path, monkeypatch, kind):
    """In each kind of write within a step: the file is named, and the run resumes from its checkpoint."""
    undisturbed = run_tiny(tmp_path / "undisturbed", STREAMED)
    write, written = disk._write, Counter()

    def full(path: Path, tensors, copied) -> None:
        if path.name.startswith(kind):
            written[path.name] += 1
            if written[path.name] == 4:  # not in the first step
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, tensors, copied)

    run = engine(tmp_path / "full", STREAMED, lambda event: None)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_write", full)
        with pytest.raises(OSError, match=rf"{kind}-\d") as caught:
            run.run()
    assert caught.value.errno == errno.ENOSPC
    assert not (run.directory / "offload").exists()
    engine(tmp_path / "full", STREAMED, lambda event: None, run.directory).run()
    expected, found = bits(undisturbed.directory), bits(run.directory)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}


@pytest.mark.parametrize(("before", "after"), [("stream", "memory"), ("memory", "stream")])
def test_a_checkpoint_of_the_other_residency_says_how_to_resume(tmp_path, before, after):
    """Within a phase the one that it began with goes on."""
    directory = engine_at(tmp_path, STREAMED | {"training.residency": before}, 2)
    with pytest.raises(StackwiseError, match=re.escape(f'training.residency = "{before}"')):
        engine(tmp_path, STREAMED | {"training.residency": after}, lambda event: None, directory).run()


def test_a_loss_scaler_can_t_be_streamed(tmp_path):
    """It needs all gradients at once; the plan says so, and what to take."""
    with pytest.raises(UsageError, match='Take "bf16" or "fp32"'):
        run_tiny(tmp_path, STREAMED | {"precision": {"active": {"use": "fp16", "cpu_compute": "fp16"}}})


def test_a_scaler_of_a_frozen_stack_above_counts_as_well(tmp_path):
    """A step runs it, and its loss would be scaled in memory."""
    precision = {"active": "fp32", "trunk": {"use": "fp16", "cpu_compute": "fp16"}}
    mode = {"use": "progressive", "building": "prepend"}
    with pytest.raises(UsageError, match="scales the loss"):
        run_tiny(tmp_path, STREAMED | {"precision": precision, "trainer_mode": mode})


@pytest.mark.parametrize("streamed_first", [True, False])
def test_left_to_itself_a_phase_goes_on_as_it_began(tmp_path, monkeypatch, streamed_first):
    """However much memory is free when it resumes."""
    auto = STREAMED | {"training.residency": "auto"}
    undisturbed = run_tiny(tmp_path / "undisturbed", auto)
    place = "stackwise_core.engine.loop.engine.Engine.offload"
    offload, kinds = Engine.offload, []

    def with_memory(free: bool):
        def found(self, planned, checkpoints=None):
            made = offload(self, evolve(planned, offload=None if free else "disk"), checkpoints)
            kinds.append(made is not None)
            return made

        return found

    monkeypatch.setattr(place, with_memory(not streamed_first))
    directory = engine_at(tmp_path / "first", auto, 3)
    monkeypatch.setattr(place, with_memory(streamed_first))
    engine(tmp_path / "first", auto, lambda event: None, directory).run()
    assert kinds == [streamed_first, streamed_first]
    expected, found = bits(undisturbed.directory), bits(directory)
    assert {**found, "config.toml": ""} == {**expected, "config.toml": ""}


def test_weights_are_read_ahead_and_no_oftener_than_they_are_needed(tmp_path, monkeypatch):
    """Once on the way up, once on the way down, once for the update; most of them before they are asked for."""
    reads: list[tuple[str, str]] = []
    read = disk.Disk._read

    def noted(self, entry, slot):
        reads.append((entry, threading.current_thread().name))
        return read(self, entry, slot)

    monkeypatch.setattr(disk.Disk, "_read", noted)
    ran = run_tiny(tmp_path, STREAMED | {"rack.stacks": 5, "evaluation": {"draws": 1, "sequences": 4}})
    steps = ran.plan.phases[0].steps
    of_weights = [thread for entry, thread in reads if entry.startswith("weights/")]
    # The highest stack is visited once a step; in the first step and when the phase is written they are read otherwise.
    assert len(of_weights) <= steps * (5 + 4 + 5) + 5
    ahead = sum(thread.startswith("stackwise-read") for thread in of_weights)
    assert ahead >= 0.5 * len(of_weights)


ONE_STEP = STREAMED | {"training.steps_per_stack": 1, "checkpoint.steps": None}


def test_boundaries_in_bf16_are_the_stacks_inputs_rounded(tmp_path, monkeypatch):
    """A run in memory that rounds by hand, and lets the gradient pass, has the same losses and weights."""
    streamed = run_tiny(tmp_path / "stream", ONE_STEP | {"training.boundary_dtype": "bf16"})
    through = Forward.through

    def rounded(forward, index, hidden, context):
        if torch.is_grad_enabled():
            hidden = hidden + (hidden.bfloat16().float() - hidden).detach()
        return through(forward, index, hidden, context)

    exact = run_tiny(tmp_path / "exact", ONE_STEP)
    monkeypatch.setattr(Forward, "through", rounded)
    in_memory = {"training.residency": "memory", "training.activation_checkpointing": True}
    by_hand = run_tiny(tmp_path / "memory", ONE_STEP | in_memory)
    assert streamed.losses == pytest.approx(by_hand.losses, rel=1e-6)
    assert streamed.losses != exact.losses
    for file in by_hand.directory.glob("stacks/*.safetensors"):
        ours = load_file(streamed.directory / file.relative_to(by_hand.directory))
        for name, tensor in load_file(file).items():
            assert torch.allclose(ours[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("clip", ["all", "stack"])
def test_a_bad_gradient_leaves_the_same_weights_as_in_memory(tmp_path, monkeypatch, clip):
    """With one norm for all no weight moves; stack by stack those above it do, and neither it nor those below."""
    through, step = Forward.through, 0

    def overflows(forward, index, hidden, context):
        passed = through(forward, index, hidden, context)
        if step == 2 and index == 1 and passed.requires_grad:
            passed.register_hook(lambda gradient: gradient * math.inf)
        return passed

    monkeypatch.setattr(Forward, "through", overflows)
    weights, bad = [], []
    for residency in ("stream", "memory"):
        step = 0

        def listen(event: Event) -> None:
            nonlocal step
            if isinstance(event, StepDone | BadStep):
                step = event.step
            if isinstance(event, BadStep):
                bad.append(event.reason)

        changes = STREAMED | {"training.clip": clip, "training.residency": residency}
        directory = engine(tmp_path / residency, changes, listen).run().directory
        weights.append({file.name: file.read_bytes() for file in directory.glob("*/*.safetensors")})
    assert weights[0] == weights[1]
    assert len(weights[0]) == 3
    assert bad == [bad[0]] * 2
    assert "the gradient's norm" in bad[0]


def test_a_stack_that_is_clipped_by_itself_is_visited_twice(tmp_path, monkeypatch):
    """On the way up and on the way down: no gradient waits, and weights are read once less."""
    reads, writes = Counter[str](), Counter[str]()
    read, write = disk.Disk._read, disk.Disk.write
    monkeypatch.setattr(disk.Disk, "_read", lambda self, entry, slot: reads.update([entry]) or read(self, entry, slot))
    monkeypatch.setattr(
        disk.Disk, "write", lambda self, entry, tensors: writes.update([entry]) or write(self, entry, tensors)
    )
    changes = STREAMED | {"checkpoint.steps": None, "training.clip": "stack"}
    steps = run_tiny(tmp_path, changes).result.phases[0].steps
    assert not any(entry.startswith("gradients/") for entry in writes)
    assert writes["weights/000"] == writes["moments/000"] == steps
    assert reads["moments/000"] == steps - 1
    assert reads["weights/000"] <= 2 * steps
