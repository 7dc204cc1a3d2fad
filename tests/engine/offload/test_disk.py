"""Training state that waits on a disk, or in host memory: what was written is read, at any time and in any order."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stackwise_core.engine.offload import disk
from stackwise_core.engine.offload.disk import Disk
from stackwise_core.engine.offload.host_memory import HostMemory
from stackwise_core.engine.offload.offload import Offload


@pytest.fixture(params=["disk", "memory"])
def offload(request, tmp_path):
    """Each place where state can wait."""
    made = Disk(tmp_path / "offload") if request.param == "disk" else HostMemory(torch.device("cpu"))
    yield made
    made.close()


def tensors(seed: int, *, rows: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(rows, 33, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "step": torch.tensor(float(seed)),
        "bytes": torch.randint(0, 255, (5,), generator=generator, dtype=torch.uint8),
        "none": torch.empty(0, 3),
    }


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_entry_is_what_was_written_last(offload: Offload):
    """Of whatever format and shape, though it was larger or smaller before."""
    assert "weights/000" not in offload
    for seed, rows in enumerate((50, 50, 80, 20)):
        offload.write("weights/000", tensors(seed, rows=rows))
        assert same(offload.read("weights/000"), tensors(seed, rows=rows))
    assert offload.entries() == ["weights/000"]


def test_reading_ahead_changes_nothing(offload: Offload):
    """However many others are read meanwhile, and though the entry is written again."""
    for seed in range(6):
        offload.write(f"boundary/{seed:03d}", tensors(seed))
    offload.prefetch("boundary/000")
    for _ in range(3):
        for seed in range(1, 6):
            assert same(offload.read(f"boundary/{seed:03d}"), tensors(seed))
    assert same(offload.read("boundary/000"), tensors(0))
    offload.prefetch("boundary/001")
    offload.write("boundary/001", tensors(9))
    assert same(offload.read("boundary/001"), tensors(9))
    offload.prefetch("boundary/100")  # which isn't there
    assert offload.entries() == []


def saved(offload: Offload, folder: Path) -> dict[str, Path]:
    """Save all durable entries as a checkpoint does."""
    folder.mkdir()
    paths = {entry: folder / f"{entry.replace('/', '-')}.safetensors" for entry in offload.entries()}
    for entry, path in paths.items():
        offload.save(entry, path)
    offload.saved(paths)
    return paths


def test_a_checkpoint_stays_as_it_was(offload: Offload, tmp_path):
    """What is written later doesn't touch its files, and it can be gone back to."""
    for entry, seed in (("weights/000", 0), ("moments/000", 1), ("gradients/000", 2)):
        offload.write(entry, tensors(seed))
    paths = saved(offload, tmp_path / "first")
    assert paths.keys() == {"weights/000", "moments/000"}
    assert same(offload.read("weights/000"), tensors(0))
    offload.write("weights/000", tensors(3))
    assert same(offload.read("weights/000"), tensors(3))
    assert same(load_file(paths["weights/000"]), tensors(0))
    again = saved(offload, tmp_path / "second")
    assert same(load_file(again["weights/000"]), tensors(3))
    assert same(load_file(again["moments/000"]), tensors(1))  # not written since, and there all the same
    offload.restore(paths)
    assert same(offload.read("weights/000"), tensors(0))
    assert offload.entries() == ["moments/000", "weights/000"]
    assert "gradients/000" not in offload


def test_a_write_that_fails_is_told_by_the_next_call(tmp_path, monkeypatch):
    """It goes on behind the caller's back, and no error is lost."""
    offload = Disk(tmp_path / "offload")
    write: Callable = disk._write

    def failing(path, held, copied):
        if "001" in path.name:
            raise OSError(28, os.strerror(28), str(path))
        write(path, held, copied)

    monkeypatch.setattr(disk, "_write", failing)
    for call in (lambda: offload.write("weights/002", tensors(2)), lambda: offload.read("weights/001")):
        offload.write("weights/001", tensors(1))
        with pytest.raises(OSError, match="weights-001"):
            call()
    offload.close()
    assert not (tmp_path / "offload").exists()


def test_what_a_killed_process_left_is_swept(tmp_path):
    """The folder belongs to the process that works on the run."""
    (tmp_path / "offload").mkdir()
    (tmp_path / "offload" / "weights-000.safetensors").write_bytes(b"half")
    offload = Disk(tmp_path / "offload")
    assert "weights/000" not in offload
    assert not list((tmp_path / "offload").iterdir())
    offload.close()


def test_what_is_written_from_a_buffer_is_whole_before_the_buffer_is_read_into(tmp_path, monkeypatch):
    """A stack's weights are changed where they were read, and written while others are read ahead."""
    offload = Disk(tmp_path / "offload")
    for seed in range(8):
        offload.write(f"weights/{seed:03d}", tensors(seed))
    offload.read("weights/000")
    write, slow = disk._write, threading.Event()

    def slowly(path, held, copied):
        slow.wait(0.2)
        write(path, held, copied)

    monkeypatch.setattr(disk, "_write", slowly)
    changed = offload.read("weights/001")
    for tensor in changed.values():
        tensor.mul_(2)
    offload.write("weights/001", changed)
    for seed in range(2, 8):
        offload.prefetch(f"weights/{seed:03d}")
        assert same(offload.read(f"weights/{seed:03d}"), tensors(seed))
    doubled = {name: tensor * 2 for name, tensor in tensors(1).items()}
    assert same(offload.read("weights/001"), doubled)
    offload.close()
