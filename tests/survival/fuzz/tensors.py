"""A file of tensors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from stackwise_core.engine.runs.tensor_file import DamagedTensors, read_tensors
from stackwise_core.system.files import sha256
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import tensor_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put


@cache
def some_tensors() -> bytes:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(2, 0)}
    return save(tensors, metadata={"format": "pt"})


def check_tensors(content: bytes, inside: Path) -> bool:
    """Check that the tensors have the bytes of the file, or that it is refused as damaged."""
    path = inside / "some.safetensors"
    put(path, content)
    with refusing(DamagedTensors):
        tensors, digest = read_tensors(path)
        assert digest == sha256(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size
        for tensor in tensors.values():
            tensor.clone()
        return True
    return False


TENSORS = Target("safetensors", lambda: tensor_files(some_tensors()), check_tensors, sound=some_tensors)
