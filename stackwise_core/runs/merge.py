"""An adapter, folded into the full-precision masters of its stack."""

from __future__ import annotations

from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.rack.rack import Stack
from stackwise_core.runs.directory import RunDirectory


def merge_adapter(directory: RunDirectory, spec: RackSpec, adapter: Adapter, stack: int, name: str) -> None:
    """Fold a stack's adapter into its masters and delete its files, both or neither.

    Raises:
        StackwiseError: a file is missing or damaged.
    """
    module = Stack(spec, stack)
    module.load_state_dict(directory.read_stack(stack))
    module.requires_grad_(False)
    adapter.load(module, name, directory.adapter(stack, name))
    adapter.merge(module, name)
    with directory.together():
        directory.write_stack(stack, module.state_dict())
        directory.drop_adapter(stack, name)
