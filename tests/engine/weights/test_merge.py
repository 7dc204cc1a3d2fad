from functools import partial
from pathlib import Path

import pytest
import torch

from stackwise_core.engine.phases.setup import Parts, set_up_parts
from stackwise_core.engine.rack.rack import new_stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.merge import merge_adapter
from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.manifest import Manifest
from tests.tiny import tiny_config


def parts_with(tmp_path: Path, stacks: int, adapters: dict[str, str]) -> Parts:
    """A rack in fp32 whose stacks may have adapters of these names."""
    table = {name: {"use": use} | ({} if use == "ia3" else {"rank": 3}) for name, use in adapters.items()}
    return set_up_parts(*tiny_config(tmp_path, {"rack.stacks": stacks, "adapter": table}))


def filled(tmp_path: Path, parts: Parts) -> RunDirectory:
    """A run whose stacks have trained adapters, one on the other, in the order of their names."""
    directory = RunDirectory.create(tmp_path, "run")
    torch.manual_seed(1)
    for index in range(parts.spec.stacks):
        stack = new_stack(parts.spec, index, seed=5).requires_grad_(False)
        directory.write_stack(index, stack.state_dict())
        for name, adapter in sorted(parts.implementations.formats.adapters.items()):
            adapter.attach(stack, name, index, parts.spec.stacks)
            with torch.no_grad():
                for parameter in adapter.trainable(stack, [name]):
                    parameter += (1 if 1 in parameter.shape else 0.1) * torch.randn_like(parameter)
            directory.write_adapter(index, name, partial(adapter.save, stack, name))
    return directory


def output(parts: Parts, directory: RunDirectory, index: int) -> torch.Tensor:
    """Return the output of a finished run's stack for some hidden states."""
    forward = parts.forward(directory)
    forward.placement.bring((index,), active=())
    hidden = torch.randn(2, 16, parts.spec.d_model, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return forward.through(index, hidden, forward.context(torch.ones(2, 16)))


ONE = [{"stack": "lora"}, {"stack": "dora"}, {"stack": "pissa"}, {"trunk": "ia3"}]
TWO = [
    {"stack": "lora", "trunk": "lora"},
    {"stack": "lora", "trunk": "dora"},
    {"stack": "dora", "trunk": "rslora"},
    {"stack": "dora", "trunk": "dora"},
    {"stack": "olora", "trunk": "pissa"},
    {"stack": "ia3", "trunk": "ia3"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapters", "order"),
    [*((each, list(each)) for each in ONE + TWO), *((each, list(each)[::-1]) for each in TWO)],
    ids=str,
)
def test_merged_masters_give_the_same_output(tmp_path, adapters, order):
    """Whatever order they are merged in, a stack without adapters is what it was with them."""
    parts = parts_with(tmp_path, 1, adapters)
    directory = filled(tmp_path, parts)
    master, before = directory.read_stack(0), output(parts, directory, 0)
    for name in order:
        merge_adapter(directory, parts.spec, parts.implementations.formats.adapters, 0, name)
    assert directory.adapters(0) == []
    assert directory.read_stack(0).keys() == master.keys()
    without = RunDirectory.create(tmp_path, "without")
    without.write_stack(0, master)
    learnt = (output(parts, without, 0) - before).abs().max()
    assert learnt > 1e-3
    assert (output(parts, directory, 0) - before).abs().max() < 1e-3 * learnt


@pytest.fixture
def parts(tmp_path) -> Parts:
    return parts_with(tmp_path, 2, {"stack": "lora", "trunk": "lora"})


def merge(directory: RunDirectory, parts: Parts, name: str) -> None:
    merge_adapter(directory, parts.spec, parts.implementations.formats.adapters, 0, name)


def test_only_the_adapter_that_is_named_is_merged(tmp_path, parts):
    """The stack's other adapter and the other stack stay as they are, to the bit."""
    directory = filled(tmp_path, parts)
    others = [name for name in directory.manifest if "/000" not in name or name.startswith("adapters/000/stack")]
    before = {name: directory.manifest.about(name) for name in others}
    merge(directory, parts, "trunk")
    assert (directory.adapters(0), directory.adapters(1)) == (["stack"], ["stack", "trunk"])
    assert {name: directory.manifest.about(name) for name in others} == before


def test_the_masters_change_and_the_adapter_goes_or_neither(tmp_path, parts, monkeypatch):
    """A fault between the two would count what was learnt twice, or not at all."""
    directory = filled(tmp_path, parts)
    before = {name: directory.manifest.about(name) for name in directory.manifest}

    def fail(manifest: Manifest, name: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Manifest, "drop", fail)
    with pytest.raises(OSError, match="disk full"):
        merge(directory, parts, "stack")
    fresh = RunDirectory(directory.path)
    assert {name: fresh.manifest.about(name) for name in fresh.manifest} == before
    assert not any(fresh.manifest.problem(name) for name in fresh.manifest)


@pytest.mark.parametrize("file", ["stacks/000.safetensors", "adapters/000/stack/adapter_model.safetensors"])
def test_damaged_files_are_not_merged(tmp_path, parts, file):
    """They are named, and nothing changes."""
    directory = filled(tmp_path, parts)
    content = bytearray((directory.path / file).read_bytes())
    content[-2] ^= 1
    (directory.path / file).write_bytes(content)
    with pytest.raises(StackwiseError, match=rf"{file}: damaged"):
        merge(directory, parts, "stack")
    assert directory.adapters(0) == ["stack", "trunk"]


def test_a_merge_that_is_not_finite_is_refused(tmp_path):
    """The stack and the weight are named, and masters and adapter stay as they were."""
    parts = parts_with(tmp_path, 1, {"stack": "lora"})
    directory = filled(tmp_path, parts)
    weights = directory.read_stack(0)
    weights["layers.0.self_attn.q_proj.weight"][1, 2] = torch.nan
    directory.write_stack(0, weights)
    before = directory.checksums(0)
    adapters = parts.implementations.formats.adapters
    with pytest.raises(
        StackwiseError, match=r'^stack 0, layers\.0\.self_attn\.q_proj.*weight with the adapter "stack"'
    ):
        merge_adapter(directory, parts.spec, adapters, 0, "stack")
    assert directory.checksums(0) == before
