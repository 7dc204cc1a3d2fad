"""An adapter, folded into the full-precision masters of its stack."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from stackwise_core.engine.rack.number_range import FINITE
from stackwise_core.engine.rack.rack import Stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.component import origin
from stackwise_core.interfaces.rack_spec import RackSpec


def refuse_unmergeable(run: RunDirectory, spec: RackSpec, adapters: Mapping[str, Adapter]) -> None:
    """See that every adapter of a run can be folded into its stack's weights.

    Args:
        adapters: by name, what makes each adapter that a stack has.

    Raises:
        UsageError: with the reason why one can't.
    """
    for stack in range(spec.stacks):
        for name in run.adapters(stack):
            if reason := adapters[name].unmergeable:
                raise UsageError(f"{run.path}: {origin(adapters[name])} can't be merged: {reason}.")


def merge_adapter(
    directory: RunDirectory, spec: RackSpec, adapters: Mapping[str, Adapter], stack: int, name: str
) -> None:
    """Fold a stack's adapter into its masters and delete its files, both or neither.

    The stack's other adapters are written anew: what DoRA learnt, for one, is meant for the weights before.

    Args:
        adapters: by name, what makes each adapter that the stack has.

    Raises:
        StackwiseError: a file is missing or damaged.
    """
    module = Stack(spec, stack)
    module.load_state_dict(directory.read_stack(stack))
    module.requires_grad_(False)
    own = module.state_dict(keep_vars=True)
    names = directory.adapters(stack)
    for each in names:
        adapters[each].load(module, each, directory.adapter(stack, each))
    adapters[name].merge(module, name)
    for weight, merged in own.items():
        FINITE.check(merged, f'stack {stack}, {weight} with the adapter "{name}" in it')
    with directory.together():
        for each in names:
            if each != name:
                directory.write_adapter(stack, each, partial(adapters[each].save, module, each))
        directory.drop_adapter(stack, name)
        directory.write_stack(stack, own)
