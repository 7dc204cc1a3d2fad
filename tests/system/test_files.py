import os
import subprocess
import sys
from pathlib import Path

import pytest

from stackwise_core.system.files import is_abandoned, publish, publish_text, sha256, unfinished


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    """An exception in the middle of writing changes nothing."""
    target = tmp_path / "weights"
    publish_text(target, "old")

    def fail(beside):
        beside.write_text("ha")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        publish(target, fail)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights"]


def test_the_file_and_its_directory_are_synced_in_that_order(tmp_path, monkeypatch):
    """The content is durable before the name points at it, and the name after that."""
    happened, real_fsync, real_replace = [], os.fsync, os.replace

    def fsync(descriptor):
        happened.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("rename"), real_replace(a, b)))
    publish_text(tmp_path / "a", "text")
    assert happened == ["file", "rename", "directory"]
    assert (tmp_path / "a").read_text() == "text"


def test_sha256_is_the_standard_one(tmp_path):
    """The checksum is what every other tool computes."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_dead_process_left_is_abandoned():
    """Names are told apart by the process in them; those that nobody here gives are nobody's to delete."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert is_abandoned(f".weights.{gone.pid}.tmp")
    assert is_abandoned(f".weights.{10**30}.tmp")
    assert is_abandoned(unfinished(Path("weights")).name)
    others = (f".weights.{os.getppid()}.tmp", f"weights.{gone.pid}.tmp", ".weights.old.tmp", ".tmp", ".7.tmp")
    assert not any(map(is_abandoned, others))
