import pytest
import torch
from attrs import evolve

from stackwise_core.engine.phases.plan_checks import resolve_objective
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan import notes, residency
from stackwise_core.engine.plan.phase_plan import price
from stackwise_core.system.machine import Room
from tests.tiny import tiny_config

STREAMED = {"trainer_mode": {"use": "end_to_end"}, "training.residency": "stream", "training.memory_budget": "8 GB"}


def priced(tmp_path, changes, device="cuda"):
    """The last phase as it is on a device, which need not be there, and the setup."""
    setup = evolve(set_up(*tiny_config(tmp_path, changes)), device=torch.device(device))
    training, implementations = setup.config.training, setup.implementations
    phases = implementations.mode.plan(setup.spec, training.budget)
    resolved = [resolve_objective(each, setup.noise, training, implementations.objective) for each in phases]
    return price(resolved[-1], resolved[:-1], setup), setup


@pytest.mark.parametrize("offload", ["memory", "disk"])
def test_a_device_a_host_and_a_disk_hold_a_part_each(tmp_path, offload):
    """Host memory holds what waits, page-locked; or the disk does, and buffers that it is read to."""
    planned, setup = priced(tmp_path, STREAMED | {"training.offload": offload, "rack.d_model": 48})
    assert planned.offload == offload
    assert planned.memory.boundaries == 0
    assert planned.memory.weights < 4 * setup.spec.parameters
    assert planned.host.boundaries == 0
    assert (planned.host.offloaded > planned.offloaded) == (offload == "memory")
    assert (planned.state_on_disk > 0) == (offload == "disk")
    assert planned.on_disk == planned.state_on_disk + planned.run_files


def test_a_cpu_has_one_memory(tmp_path):
    """No host beside it, and what waits in memory counts there."""
    on_cpu, _ = priced(tmp_path, STREAMED | {"training.offload": "memory"}, device="cpu")
    on_disk, _ = priced(tmp_path, STREAMED | {"training.offload": "disk"}, device="cpu")
    assert on_cpu.host is None
    assert on_cpu.memory.boundaries == on_disk.memory.boundaries + on_cpu.offloaded


def test_a_cache_in_memory_is_the_hosts(tmp_path):
    """And a window of it."""
    planned, _ = priced(tmp_path, {"training.memory_budget": "8 GB"})
    assert planned.phase.frozen_prefix
    assert planned.memory.boundaries == 0
    assert planned.host.boundaries > planned.boundary.bytes


def test_what_the_host_has_no_room_for_is_noted(tmp_path, monkeypatch):
    """With what it needs and what there is; and "auto" takes the disk."""
    monkeypatch.setattr(residency, "memory", lambda: Room(1, 1))
    monkeypatch.setattr(notes, "memory", lambda: Room(1, -(10**12)))
    monkeypatch.setattr(notes, "device_memory", lambda device: Room(10**12, 10**12))
    planned, setup = priced(tmp_path, STREAMED)
    assert planned.offload == "disk"
    (said,) = notes.of_the_memory([planned], setup)
    assert said.startswith("The host's part of ")
