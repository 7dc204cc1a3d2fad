"""Limits of control groups, read from made-up trees of /proc and /sys."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from stackwise_core.system.control_groups import GroupMemory, memory_limits, processor_quota

V2 = "0::/jobs/one\n"
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "5:cpu,cpuacct:/jobs/one\n4:memory:/jobs/one\n0::/\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
NO_LIMIT = "9223372036854771712"


@pytest.fixture
def machine(tmp_path):
    """Make a tree of files, and return its root."""

    def make(groups: str, mounts: str, files: Mapping[str, str]) -> Path:
        process = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
        for name, text in {**process, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_version_2_counts_what_can_not_be_given_back(machine):
    """Pages of files that were read don't count as used: the kernel drops them when a process needs memory."""
    stat = "anon 300\nfile 500\nactive_file 100\ninactive_file 250\nslab_reclaimable 50\nshmem 150\n"
    own = {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": stat}
    root = machine(V2, V2_MOUNT, {f"jobs/one/{name}": text for name, text in own.items()})
    assert memory_limits(root) == [GroupMemory(root / "sys/fs/cgroup/jobs/one", 1000, 500)]


@pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
def test_groups_above_limit_those_below(machine, limit):
    """A group without a limit of its own has that of the one above; the group at the top has files of its own, too."""
    files = {f"jobs/{limit}": "700", "jobs/memory.current": "10", "jobs/one/memory.max": "max", "memory.max": "900"}
    root = machine(V2, V2_MOUNT, files)
    assert [(each.folder.name, each.limit, each.used) for each in memory_limits(root)] == [
        ("jobs", 700, 10),
        ("cgroup", 900, 0),
    ]


def test_version_1_knows_of_groups_that_are_not_seen(machine):
    """Its totals include the groups below, and its memory.stat the limits of those above."""
    files = {
        "memory/jobs/one/memory.limit_in_bytes": NO_LIMIT,
        "memory/jobs/one/memory.usage_in_bytes": "600",
        "memory/jobs/one/memory.stat": "inactive_file 1\nhierarchical_memory_limit 800\ntotal_inactive_file 200\n",
        "memory/memory.limit_in_bytes": NO_LIMIT,
    }
    root = machine(V1, V1_MOUNTS, files)
    assert memory_limits(root) == [GroupMemory(root / "sys/fs/cgroup/memory/jobs/one", 800, 400)]


@pytest.mark.parametrize("mounted", ["/docker/abc", "/", "/elsewhere"])
def test_a_container_whose_paths_are_the_machine_s(machine, mounted):
    """Docker mounts the container's own group at the top, and the process's path is as the machine has it."""
    mounts = f"33 31 0:30 {mounted} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    root = machine("4:memory:/docker/abc\n", mounts, {"memory/memory.limit_in_bytes": "800"})
    assert [each.limit for each in memory_limits(root)] == [800]


def test_a_process_from_outside_its_name_space(machine):
    """Its path leads above the top, where there is nothing to see."""
    root = machine("0::/../../other\n", V2_MOUNT, {"memory.max": "800"})
    (root / "sys/memory.max").write_text("1")
    assert [each.limit for each in memory_limits(root)] == [800]


def test_mounts_can_have_spaces(machine):
    """mountinfo writes them as octal numbers."""
    mounts = V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/with\\040space")
    root = machine("0::/\n", mounts, {"with space/memory.max": "800"})
    assert [each.limit for each in memory_limits(root)] == [800]


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        (V2, V2_MOUNT, {"jobs/one/cpu.max": "150000 100000"}, 1.5),
        (V2, V2_MOUNT, {"jobs/one/cpu.max": "max 100000", "jobs/cpu.max": "300000 100000"}, 3.0),
        (V2, V2_MOUNT, {"jobs/one/cpu.max": "400000 100000", "jobs/cpu.max": "20000 10000"}, 2.0),
        (V2, V2_MOUNT, {"jobs/one/cpu.max": "max 100000"}, None),
        (V1, V1_MOUNTS, {"cpu,cpuacct/jobs/one/cpu.cfs_quota_us": "-1"}, None),
        (
            V1,
            V1_MOUNTS,
            {"cpu,cpuacct/jobs/cpu.cfs_quota_us": "50000", "cpu,cpuacct/jobs/cpu.cfs_period_us": "100000"},
            0.5,
        ),
    ],
)
def test_the_least_quota_of_processors(machine, groups, mounts, files, quota):
    """Of all groups, in processors."""
    assert processor_quota(machine(groups, mounts, files)) == quota


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        ("", "", {}),
        (V2, "", {"jobs/one/memory.max": "5"}),
        ("nonsense\n\n", "31\n- cgroup2\n" + V2_MOUNT, {}),
        (V2, V2_MOUNT, {"jobs/one/memory.max": "many", "jobs/one/memory.stat": "\n1 2 3\n", "jobs/one/cpu.max": ""}),
    ],
)
def test_what_can_not_be_read_limits_nothing(machine, groups, mounts, files):
    """As on other systems, and in sandboxes that show half of it."""
    root = machine(groups, mounts, files)
    assert memory_limits(root) == []
    assert processor_quota(root) is None
    assert memory_limits(root / "not there") == []
