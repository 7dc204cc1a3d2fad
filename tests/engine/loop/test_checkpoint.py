import json
from itertools import pairwise

import pytest
import torch

from stackwise_core.config.source_run import read_source_run
from stackwise_core.engine.events.events import PhaseDone, PhaseResumed, StepDone
from stackwise_core.engine.loop import checkpoint
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError, UsageError
from tests.changed_files import flip
from tests.interrupted_runs import Broken, engine
from tests.run_bits import bits, same
from tests.tiny import run_tiny

STEPS = {"training.steps_per_stack": 8, "rack.stacks": 1, "checkpoint.steps": 2}


def broken_at(tmp_path, step: int, changes=STEPS):
    """A run that broke off in a step of its only phase, before that step's own checkpoint."""

    def listen(event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, changes, listen).run()
    return tmp_path / "runs" / "tiny"


def go_on(tmp_path, directory, changes=STEPS) -> list[PhaseResumed]:
    events: list = []
    engine(tmp_path, changes, events.append, directory).run()
    return [event for event in events if isinstance(event, PhaseResumed)]


def forged(tmp_path, change, changes=STEPS):
    """A run that broke off in its third step, whose only checkpoint was changed, under a right checksum."""
    directory = broken_at(tmp_path, 3, changes)
    run = RunDirectory(directory)
    (name,) = run.checkpoints()
    said, tensors = run.read_checkpoint(name)
    change(said, tensors)
    run.write_checkpoint(name, said, tensors)
    return directory


@pytest.fixture
def undisturbed(tmp_path) -> dict[str, str]:
    """The files of a run that nothing happened to."""
    return bits(run_tiny(tmp_path / "undisturbed", STEPS).directory)


def test_the_last_two_are_kept_and_none_of_a_finished_phase(tmp_path):
    """After steps 2, 4 and 6 there are those of 4 and 6; after the phase they are gone."""
    directory = broken_at(tmp_path, 7)
    assert RunDirectory(directory).checkpoints() == ["0000-000000004", "0000-000000006"]
    (resumed,) = go_on(tmp_path, directory)
    assert (resumed.step, resumed.damaged) == (6, ())
    assert not (directory / "resume").exists()
    assert not RunDirectory(directory).checkpoints()


@pytest.mark.slow
def test_the_newest_whole_one_is_used(tmp_path, undisturbed):
    """With flipped bits in the newest, the one before it is taken, which is said; the run ends with the same bits."""
    directory = broken_at(tmp_path, 7)
    flip(directory / "resume" / "0000-000000006.safetensors")
    (resumed,) = go_on(tmp_path, directory)
    assert resumed.step == 4
    (problem,) = resumed.damaged
    assert "resume/0000-000000006.safetensors: damaged" in problem
    assert same(bits(directory), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_without_a_whole_one_the_phase_begins_anew(tmp_path, undisturbed, suffix):
    """Cut short or deleted, no checkpoint is used; the same bits come out in the end."""
    directory = broken_at(tmp_path, 7)
    newest, older = (directory / "resume" / f"0000-00000000{step}.{suffix}" for step in (6, 4))
    newest.unlink()
    older.write_bytes(older.read_bytes()[:-1])
    (resumed,) = go_on(tmp_path, directory)
    assert resumed.step == 0
    assert ["missing" in problem or "damaged" in problem for problem in resumed.damaged] == [True, True]
    assert same(bits(directory), undisturbed)


def test_minutes_count_by_a_clock_that_does_not_jump(tmp_path, monkeypatch):
    """With two minutes a step and three between checkpoints, each second step writes one, whatever the time of day."""
    elapsed = iter(range(0, 100_000, 120))
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(elapsed))
    monkeypatch.setattr(checkpoint.time, "time", lambda: pytest.fail("the time of day may jump"))
    written = []
    write = checkpoint.Checkpoints.write
    monkeypatch.setattr(
        checkpoint.Checkpoints,
        "write",
        lambda self, state, *others: (written.append(state.step), write(self, state, *others)),
    )
    run_tiny(tmp_path, STEPS | {"checkpoint.steps": None, "checkpoint.minutes": 3.0})
    assert [later - step for step, later in pairwise(written)] == [written[0]] * (len(written) - 1)
    assert written[0] in (1, 2, 3)  # by how often the clock is asked


def test_one_of_another_shape_is_refused(tmp_path):
    """A whole checkpoint whose weights aren't of what trains names the weight and both shapes; nothing is loaded."""
    directory = forged(tmp_path, lambda said, tensors: tensors.update({"rack.stacks.0.norm.weight": torch.ones(7)}))
    with pytest.raises(StackwiseError, match=r"stacks\.0\.norm\.weight is \(torch\.float32, 7\) in it"):
        go_on(tmp_path, directory)


@pytest.mark.slow
def test_what_a_checkpoint_tells_is_checked(tmp_path, undisturbed):
    """JSON that no run writes is no checkpoint, whatever the manifest says of it."""
    directory = broken_at(tmp_path, 7)
    run = RunDirectory(directory)
    for name, said in zip(
        run.checkpoints(), ([], {"phase": 0, "metrics": 0, "optimizer": {}, "state": 3}), strict=True
    ):
        run.write_checkpoint(name, said, run.read_checkpoint(name)[1])
    (resumed,) = go_on(tmp_path, directory)
    assert resumed.step == 0
    assert all("not one of this phase" in problem for problem in resumed.damaged)
    assert same(bits(directory), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda said, tensors: tensors.__setitem__("optimizer.0.exp_avg", torch.zeros(3)),
        lambda said, tensors: tensors.__setitem__("optimizer.0.exp_avg", tensors["optimizer.0.exp_avg"].double()),
        lambda said, tensors: tensors.__setitem__("optimizer.99.exp_avg", torch.zeros(3)),
        lambda said, tensors: tensors.__setitem__("optimizer.0.state", torch.zeros(3)),
        lambda said, tensors: said["optimizer"].__setitem__("ab", 1),
        lambda said, tensors: said["optimizer"].__setitem__("0.step", -1),
    ],
)
def test_an_optimizer_state_that_cannot_be_is_refused(tmp_path, change):
    """torch's fused kernel would write behind a moment that is too short."""
    directory = forged(tmp_path, change)
    with pytest.raises(StackwiseError, match="optimizer state isn't that of what trains now"):
        go_on(tmp_path, directory)


@pytest.mark.slow
@pytest.mark.parametrize("said_of_it", [3, {}, {"scale": 1.0}])
@pytest.mark.parametrize("precision", ["fp32", {"use": "fp16", "cpu_compute": "fp16"}])
def test_a_scaler_that_cannot_be_is_refused(tmp_path, precision, said_of_it):
    """Of a phase with a loss scaler as of one without."""
    changes = STEPS | {"precision": {"active": precision}}
    directory = forged(tmp_path, lambda said, tensors: said.__setitem__("scaler", said_of_it), changes)
    with pytest.raises(StackwiseError, match="loss scaler isn't that of what trains now"):
        go_on(tmp_path, directory, changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda said, tensors: tensors.pop("losses"),
        lambda said, tensors: tensors.__setitem__("losses", torch.zeros(2, 1, dtype=torch.float64)),
        lambda said, tensors: said.__setitem__("metrics", -5),
        lambda said, tensors: said["state"].__setitem__("step", -3),
        lambda said, tensors: said["state"]["course"].__setitem__("variance", -1.0),
        lambda said, tensors: said["state"]["course"].__setitem__("steps", -1),
    ],
)
def test_a_state_that_cannot_be_is_no_checkpoint(tmp_path, undisturbed, change):
    """The phase begins anew, and ends with the same bits."""
    directory = forged(tmp_path, change)
    (resumed,) = go_on(tmp_path, directory)
    assert resumed.step == 0
    assert same(bits(directory), undisturbed)


def test_a_damaged_one_makes_room_for_a_whole_one(tmp_path):
    """It isn't one of the two that are kept."""
    directory = broken_at(tmp_path, 7)
    flip(directory / "resume" / "0000-000000006.safetensors")

    def listen(event) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, STEPS | {"checkpoint.steps": 1}, listen, directory).run()
    assert RunDirectory(directory).checkpoints() == ["0000-000000004", "0000-000000005"]


def test_measurements_are_neither_lost_nor_there_twice(tmp_path):
    """metrics.jsonl is cut back to the checkpoint, so that each step is in it once."""
    directory = broken_at(tmp_path, 7)
    go_on(tmp_path, directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))
    assert [line["steps"] for line in lines if line["kind"] == "phase"] == [8]


@pytest.mark.slow
def test_a_phase_that_goes_on_counts_what_it_did_before(tmp_path):
    """Steps, losses and boundaries of earlier processes are in the phase's result."""
    changes = {"rack.stacks": 2, "checkpoint.steps": 2, "cache_backend": {"use": "disk"}}
    whole = run_tiny(tmp_path / "whole", changes).result.phases[1]

    def listen(event) -> None:
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 1" and event.step == 5:
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, changes, listen).run()
    events: list = []
    engine(tmp_path, changes, events.append, tmp_path / "runs" / "tiny").run()
    (resumed,) = (event.result for event in events if isinstance(event, PhaseDone))
    assert (resumed.steps, resumed.first_loss, resumed.last_loss) == (whole.steps, whole.first_loss, whole.last_loss)
    assert resumed.boundaries_computed == whole.boundaries_computed
    assert resumed.boundaries_read >= whole.boundaries_read


@pytest.mark.slow
def test_a_rack_in_one_file(tmp_path):
    """save_rack writes after each phase what the rack's files hold then, read by the safetensors library itself."""
    from safetensors.torch import load_file

    lora = {"stack": {"use": "lora", "rank": 2}}
    ran = run_tiny(tmp_path, {"rack.stacks": 2, "checkpoint.save_rack": True, "adapter": lora})
    racks = sorted((ran.directory / "racks").iterdir())
    assert [path.name for path in racks] == [f"{number + 1:03d}.safetensors" for number in range(len(ran.plan.phases))]
    first, last = load_file(racks[0]), load_file(racks[-1])
    assert "stacks.1.norm.weight" not in first
    expected = load_file(ran.directory / "embedding.safetensors")
    for index in range(2):
        stack = load_file(ran.directory / f"stacks/{index:03d}.safetensors")
        adapter = load_file(ran.directory / f"adapters/{index:03d}/stack/adapter_model.safetensors")
        expected |= {f"stacks.{index}.{name}": tensor for name, tensor in stack.items()}
        expected |= {f"adapters.{index}.stack.{name}": tensor for name, tensor in adapter.items()}
    assert last.keys() == expected.keys()
    assert all(torch.equal(last[name], tensor) for name, tensor in expected.items())


def test_a_rack_file_that_a_kill_kept_from_being_written_is_written_later(tmp_path):
    """A run that ended between a phase and its rack's file writes that file when it goes on."""
    changes = {"rack.stacks": 2, "checkpoint.save_rack": True, "training.steps_per_stack": 2}

    def listen(event) -> None:
        if isinstance(event, PhaseDone):
            raise Broken

    with pytest.raises(Broken):
        engine(tmp_path, changes, listen).run()
    directory = tmp_path / "runs" / "tiny"
    content = (directory / "racks/001.safetensors").read_bytes()
    RunDirectory(directory).manifest.drop("racks/001.safetensors")
    engine(tmp_path, changes, lambda event: None, directory).run()
    assert (directory / "racks/001.safetensors").read_bytes() == content


def test_without_save_stacks_no_weights_are_left(tmp_path):
    """The run is measured, and then its weights go; what wants to start from it says why it can't."""
    ran = run_tiny(tmp_path, STEPS | {"checkpoint.save_stacks": False})
    assert ran.result.likelihoods
    assert not list(ran.directory.rglob("*.safetensors"))
    manifest = RunDirectory(ran.directory).manifest
    assert not any(manifest.problem(name) for name in manifest)
    with pytest.raises(UsageError, match=r"kept no weights: checkpoint\.save_stacks was false"):
        read_source_run(ran.directory)
