"""The machine's share that this process may use: the smallest of all limits."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stackwise_core.system import machine

MOUNT = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.fixture
def group(tmp_path, monkeypatch) -> Path:
    """The folder of this process's control group, in a machine that has no other limits."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "proc" / "self" / "mountinfo").write_text(MOUNT)
    folder = tmp_path / "sys" / "fs" / "cgroup"
    folder.mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return folder


def test_without_limits_it_is_the_machine_s(group):
    """Limits of this machine's own groups aside."""
    room, host = machine.memory(), psutil.virtual_memory()
    assert (room.total, room.limit) == (host.total, "")
    assert room.free == pytest.approx(host.available, rel=0.2)
    assert machine.processors() == len(os.sched_getaffinity(0))


def test_a_control_group_leaves_its_limit(group):
    """In all, and less what is used; one that is larger than the machine leaves the machine's."""
    (group / "memory.max").write_text("900000000")
    (group / "memory.current").write_text("300000000")
    assert machine.memory() == machine.Room(900_000_000, 600_000_000, f"the control group {group}")
    (group / "memory.current").write_text("1000000000")  # shrunk below what it holds
    assert machine.memory().free == 0
    (group / "memory.max").write_text(str(1 << 50))
    assert (machine.memory().total, machine.memory().limit) == (psutil.virtual_memory().total, "")


def test_a_quota_of_processors_is_rounded_up(group):
    """Half a processor's time is still a thread's."""
    for quota, processors in (("50000 100000", 1), ("100000 100000", 1), ("6400000 100000", None)):
        (group / "cpu.max").write_text(quota)
        assert machine.processors() == (processors or len(os.sched_getaffinity(0)))


def test_ulimit_leaves_its_limit(group):
    """Of address space, and of data, to a process that really has it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux heeds these limits")
    code = (
        "import resource, sys, psutil; from stackwise_core.system.machine import memory\n"
        "name, room = getattr(resource, sys.argv[1]), int(sys.argv[2])\n"
        "resource.setrlimit(name, (room, resource.getrlimit(name)[1])); print(memory())"
    )
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        command = [sys.executable, "-c", code, name, str(900_000_000)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.startswith("Room(total=900000000, free=")
        assert f"limit='ulimit {option}'" in said
        free = int(said.partition("free=")[2].partition(",")[0])
        assert 300_000_000 < free < 900_000_000


def test_ulimit_counts_what_this_process_has(group, monkeypatch):
    """The room is what is left of the limit."""
    taken = psutil.Process().memory_info().vms
    limits = {resource.RLIMIT_AS: taken + 123_000_000}
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda name: (limits[name],) * 2 if name in limits else infinite)
    assert machine.memory().free == pytest.approx(123_000_000, abs=20_000_000)
    assert machine.memory().limit == "ulimit -v"
