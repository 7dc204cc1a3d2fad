"""Limits of Linux control groups, versions 1 and 2: this process's group, and those above it as far as they are seen.

A container is a control group. What the system says of its memory and processors is still the whole machine's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from attrs import frozen

UNLIMITED = 1 << 60
"""Bytes from which a limit is none: version 1 writes a number near the largest."""
NO_TRACE = ("active_file", "inactive_file", "slab_reclaimable")
"""Entries of memory.stat that the kernel gives back by itself when memory is short: mostly files that were read."""


@frozen
class GroupMemory:
    """Memory of one control group."""

    folder: Path
    limit: int
    used: int
    """Bytes in use, without what the kernel can give back."""


@frozen
class _Group:
    version: int
    folder: Path

    def read(self, name: str) -> str:
        """Return the text of one of its files; nothing where it isn't there."""
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """Return a number in one of its files; None where there is none, as ``max``."""
        text = self.read(name)
        return int(text) if re.fullmatch(r"-?\d+", text) else None


def memory_limits(root: Path = Path("/")) -> list[GroupMemory]:
    """Return what each group with a limit has, this process's own first.

    Args:
        root: folder that has ``proc`` and ``sys``.
    """
    return [found for group in _groups("memory", root) if (found := _memory(group)) is not None]


def processor_quota(root: Path = Path("/")) -> float | None:
    """Return how many processors' time the groups leave to this process; None: all of it."""
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _memory(group: _Group) -> GroupMemory | None:
    pairs = (line.split() for line in group.read("memory.stat").splitlines())
    stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    if group.version == 2:
        # Beyond memory.high nothing is killed, and everything waits until pages are given back.
        limits, used = [group.number("memory.max"), group.number("memory.high")], group.number("memory.current")
        without_trace = sum(stat.get(name, 0) for name in NO_TRACE)
    else:
        # The second one knows of groups above that a container doesn't see.
        limits = [group.number("memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
        used = group.number("memory.usage_in_bytes")
        without_trace = sum(stat.get(f"total_{name}", 0) for name in NO_TRACE)
    limit = min((limit for limit in limits if limit is not None), default=UNLIMITED)
    if limit >= UNLIMITED:
        return None
    return GroupMemory(group.folder, limit, max(0, (used or 0) - without_trace))


def _quota(group: _Group) -> float | None:
    if group.version == 2:
        quota, _, period = group.read("cpu.max").partition(" ")
        numbers = (int(quota), int(period)) if quota.isdigit() and period.isdigit() else None
    else:
        read = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
        numbers = None if read[0] is None or read[1] is None else (read[0], read[1])
    return numbers[0] / numbers[1] if numbers is not None and min(numbers) > 0 else None


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """Yield this process's group of a controller and those above it, in each hierarchy that has the controller."""
    own = _own_paths(root)
    for version, mounted, place in _mounts(controller, root):
        path = own.get(controller if version == 1 else "")
        if path is None:
            continue
        # A container's mount begins at its own group, and the path is as the machine sees it.
        inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        for part in (inside, *inside.parents):
            yield _Group(version, place / part)


def _own_paths(root: Path) -> dict[str, PurePosixPath]:
    """Return the path of this process's group by controller. That of version 2, which has all, is under no name."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        if line.count(":") < 2:
            continue
        number, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if number != "0" else [""]:
            paths[controller] = PurePosixPath(path or "/")
    return paths


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, PurePosixPath, Path]]:
    """Yield version, path of the group at the top, and folder of each hierarchy that may have the controller."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        if version == 1 and controller not in kinds[2].split(","):
            continue
        yield version, PurePosixPath(_unescaped(fields[3])), root / _unescaped(fields[4]).lstrip("/")


def _unescaped(path: str) -> str:
    """Return a path as it is; mountinfo writes spaces and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
