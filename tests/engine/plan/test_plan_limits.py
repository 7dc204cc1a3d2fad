"""Plans that no machine holds are refused before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner

import stackwise_core as sw
from stackwise_core.cli import main
from stackwise_core.engine.estimates.memory_estimate import Memory
from stackwise_core.engine.events.events import PhaseStarted
from stackwise_core.engine.phases.setup import WINDOW, set_up
from stackwise_core.engine.plan import plan_limits
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.plan.plan_limits import FAR, check_offload, check_possible
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.errors import UsageError
from stackwise_core.system import machine
from stackwise_core.system.machine import Room
from tests.command_line import CONFIG
from tests.tiny import TinyRun, tiny_config

HUGE = {"rack.d_model": 1_000_000}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a small configuration in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Put this process into a control group with a limit."""

    def put(limit: int, used: int = 0) -> Path:
        process, group = tmp_path / "machine" / "proc" / "self", tmp_path / "machine" / "sys" / "fs" / "cgroup"
        process.mkdir(parents=True)
        group.mkdir(parents=True)
        (process / "cgroup").write_text("0::/\n")
        (process / "mountinfo").write_text("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        (group / "memory.max").write_text(str(limit))
        (group / "memory.current").write_text(str(used))
        monkeypatch.setattr(machine, "ROOT", tmp_path / "machine")
        return group

    return put


def test_several_times_the_memory_is_refused(tmp_path):
    """With the phase, its largest part and what the machine has; a plan that may just fit isn't."""
    plan = make_plan(set_up(*tiny_config(tmp_path)))
    memory = Memory(process=1, weights=10, gradients=2, optimizer=80, activations=6, boundaries=1)
    plan = evolve(plan, phases=(evolve(plan.phases[0], memory=memory), *plan.phases[:0]))
    check_possible(plan, Room(total=100, free=0), None)
    check_possible(plan, Room(total=100 // FAR + 1, free=0), None)
    with pytest.raises(sw.UsageError) as refused:
        check_possible(plan, Room(total=100 // FAR, free=0), None)
    assert str(refused.value).startswith(
        'Phase "stack 0" needs 100 B of memory, 80 B of it for optimizer, and this machine has 33 B. A smaller stack'
    )
    assert "--beyond-machine" in str(refused.value)
    with pytest.raises(sw.UsageError, match="and ulimit -v leaves 33 B"):
        check_possible(plan, Room(total=33, free=0, limit="ulimit -v"), None)


def test_weights_that_the_disk_does_not_hold_are_refused(tmp_path, monkeypatch):
    """Four bytes a weight; a run that goes on has its own there already."""
    plan, room = make_plan(set_up(*tiny_config(tmp_path))), machine.memory()
    needed = 4 * plan.spec.parameters
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**12, 0, free))
        if free == needed:
            check_possible(plan, room, tmp_path / "not" / "there")
    with pytest.raises(sw.UsageError, match=rf"weights .* and {tmp_path} has .* free\..* another run\.directory"):
        check_possible(plan, room, tmp_path / "not" / "there")
    check_possible(plan, room, None)


def test_a_rack_beyond_the_machine_is_planned_and_not_begun(here):
    """The table is shown with the refusal below it; nothing is left, and the name is free."""
    change = ("--set", "rack.d_model=1000000", "--set", "training.steps_per_stack=1")
    for command in ("plan", "run"):
        result = CliRunner().invoke(main, [command, "small.toml", *change])
        assert result.exit_code == 2
        assert 'Phase "stack 1" needs ' in result.output
        assert " TB of memory, " in result.output
        assert ("rack: 2 stacks" in result.output) == (command == "plan")
    assert not (here / "runs" / "small").exists()
    assert CliRunner().invoke(main, ["plan", "small.toml", "--beyond-machine", *change]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["python", "command line"])
def test_told_to_go_on_it_is_begun(here, monkeypatch, way):
    """And when memory runs out before a step, no directory is left, and the corrected file has the name."""
    monkeypatch.setattr("stackwise_core.engine.plan.plan_limits.FAR", 0)

    def full(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(Placement, "place", full)
        if way == "python":
            with pytest.raises(sw.UsageError, match="--beyond-machine"):
                sw.run("small.toml")
            with pytest.raises(MemoryError):
                sw.run("small.toml", beyond_machine=True)
        else:
            result = CliRunner().invoke(main, ["run", "small.toml", "--beyond-machine"])
            assert result.exit_code == 1
            assert "No step was taken, and nothing is left of the run.\n" in result.output
            assert "resumes" not in result.output
    assert not (here / "runs" / "small").exists()
    changed = sw.load_config("small.toml", overrides={"rack.stacks": 1, "training.steps_per_stack": 1})
    assert sw.run(changed, beyond_machine=True).directory == here / "runs" / "small"


def test_weights_that_memory_does_not_hold_leave_nothing(here, monkeypatch):
    """Also when the embedding can't be made, before a file is written."""

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(Placement, "__init__", full)
    with pytest.raises(MemoryError):
        sw.run("small.toml")
    assert not (here / "runs" / "small").exists()


def test_an_interrupt_before_the_first_step_leaves_nothing(here):
    """Whoever listens may raise, too."""

    def interrupt(event):
        if isinstance(event, PhaseStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sw.run("small.toml", listener=interrupt)
    assert not (here / "runs" / "small").exists()


@pytest.mark.cpu
def test_the_plan_knows_the_limit_of_a_container(here, container):
    """A limit that the peak is above is in a note, with its name; three times that is refused, and nothing is run."""
    assert not [note for note in sw.plan("small.toml").notes if "can have" in note]
    total = sw.plan("small.toml").phases[-1].memory.total
    group = container(total // 2, used=total // 2)
    (note,) = [note for note in sw.plan("small.toml").notes if "can have" in note]
    assert f"that this process can have, by the control group {group}." in note
    (group / "memory.max").write_text(str(total // 4))
    with pytest.raises(sw.UsageError, match=f"and the control group {group} leaves"):
        sw.run("small.toml")


@pytest.mark.cpu
def test_the_window_knows_it_too(tmp_path, container):
    """As with a memory_budget of nine tenths of what is free under the limit; so does what is streamed."""
    config, registry = tiny_config(tmp_path)
    sequence = 4 * 32 * 32
    assert set_up(config, registry).window == WINDOW
    free = 4 * sequence * 100 * 10 // 9
    container(free + 5000, used=5000)
    setup = set_up(config, registry)
    assert setup.window == 64
    assert setup.memory_budget == round(0.9 * free)


def test_estimates_are_json(here):
    """Time and speed are numbers above nothing; a run that goes on may have others."""
    made = json.loads(json.dumps(sw.plan("small.toml").to_json()))
    assert made["speed"]["operations"] > 1e6
    assert made["speed"]["copied"] > 1e6
    assert all(phase["seconds"] > 0 for phase in made["phases"])


def test_training_state_that_memory_or_disk_can_t_hold_is_refused(tmp_path, monkeypatch):
    """Before anything is written, with what it needs, what there is, and the other place."""
    changes = {"trainer_mode": {"use": "end_to_end"}, "training.residency": "stream"}
    in_memory = TinyRun.of(tmp_path, changes | {"training.offload": "memory"}).plan
    check_offload(in_memory, tmp_path)
    needs = in_memory.phases[0].offloaded
    monkeypatch.setattr(plan_limits, "memory", lambda: Room(10 * needs, needs - 1))
    with pytest.raises(UsageError, match=r'of host memory for .* are free\. Use training\.offload = "disk"'):
        check_offload(in_memory, tmp_path)
    on_disk = TinyRun.of(tmp_path, changes | {"training.offload": "disk"}).plan
    check_offload(on_disk, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan_limits.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r'on disk for .* training\.offload = "memory"'):
        check_offload(on_disk, tmp_path)
