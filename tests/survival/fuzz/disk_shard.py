"""A shard of the disk store."""

from __future__ import annotations

from pathlib import Path

from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import tensor_files
from tests.survival.fuzz.specimens import put
from tests.survival.fuzz.stores import stored, use_store


def check_shard(content: bytes, inside: Path) -> bool:
    """Check that a store over it gives right entries or none."""
    put(inside / "store" / "0.safetensors", content)
    return use_store("disk", inside / "store")


DISK_SHARD = Target("disk shard", lambda: tensor_files(stored("disk")), check_shard, sound=lambda: stored("disk"))
