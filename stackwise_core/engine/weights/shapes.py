"""Check that a run's weights are those of its rack, by the headers of their files; nothing else of them is read."""

from __future__ import annotations

import torch

from stackwise_core.engine.rack.rack import Stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.tensor_file import DamagedTensors, StoredTensor, read_header
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import embedding_file, head_file, stack_file

Shapes = dict[str, tuple[int, ...]]


def check_shapes(directory: RunDirectory, spec: RackSpec) -> None:
    """Refuse a run of which a file with full-precision weights can't belong to such a rack.

    Raises:
        StackwiseError: a file is missing, cut short, or has other tensors than such a rack's.
    """
    with torch.device("meta"):
        stacks = [Stack(spec, index).state_dict() for index in range(spec.stacks)]
    expected: dict[str, Shapes] = {
        stack_file(index): {name: tuple(tensor.shape) for name, tensor in stack.items()}
        for index, stack in enumerate(stacks)
    }
    for owner in range(spec.stacks) if spec.ends == "per_stack" else (None,):
        expected[embedding_file(owner)] = _embedding(spec)
        if not spec.tie_embeddings:
            expected[head_file(owner)] = {"lm_head.weight": (spec.vocab_size, spec.d_model)}
    for file, shapes in expected.items():
        if directory.has(file):
            _check(directory, file, shapes)


def _embedding(spec: RackSpec) -> Shapes:
    shapes: Shapes = {"embed_tokens.weight": (spec.vocab_size, spec.d_model)}
    if spec.time_encoding is not None:
        rows = len(spec.time_fractions) if spec.time_encoding == "learned" else spec.d_model
        shapes["embed_time.weight"] = (rows, spec.d_model)
    return shapes


def _check(directory: RunDirectory, file: str, expected: Shapes) -> None:
    path = directory.manifest.present(file)
    try:
        with path.open("rb", buffering=0) as opened:
            stored = read_header(opened, path)
    except DamagedTensors as error:
        directory.manifest.checked(file)
        raise StackwiseError(f"not a safetensors file: {error}") from error
    for name in sorted(expected.keys() | stored):
        if name not in stored:
            raise StackwiseError(f"{path}: expected the tensor {name} {list(expected[name])}, found none. {_OTHER}")
        if name not in expected:
            raise StackwiseError(f"{path}: found the tensor {name}, which this rack doesn't have. {_OTHER}")
        if stored[name].shape != expected[name]:
            shapes = f"expected {list(expected[name])}, found {list(stored[name].shape)}"
            raise StackwiseError(f"{path}: {name} has another shape: {shapes}. {_OTHER}")
        if not stored[name].dtype.is_floating_point:
            raise StackwiseError(f"{path}: expected {name} to be floats, found {_dtype(stored[name])}. {_OTHER}")


def _dtype(stored: StoredTensor) -> str:
    return str(stored.dtype).removeprefix("torch.")


_OTHER = "These are the weights of another rack; put back the file that the run wrote."
