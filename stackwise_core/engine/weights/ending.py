"""The end of a run: the content of finished.json, and a check that the files are those of its rack."""

from __future__ import annotations

from collections.abc import Collection

from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.shapes import check_shapes
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import FINISHED, stack_file
from stackwise_core.run_files.progress_file import FinishedFile


def read_ending(directory: RunDirectory) -> FinishedFile:
    """Read what a finished run wrote at its end.

    Raises:
        StackwiseError: it is missing, isn't what was written, or isn't what a run writes.
    """
    return FinishedFile.from_json(directory.read_json(FINISHED), directory.path / FINISHED)


def check_rack(directory: RunDirectory, spec: RackSpec, adapters: Collection[str]) -> None:
    """Refuse a finished run whose files don't fit its rack, before memory is taken for them.

    Args:
        adapters: names of those that its configuration has.

    Raises:
        StackwiseError: a stack isn't there, has tensors of other shapes, or an adapter that nothing is known of.
    """
    check_shapes(directory, spec)
    for stack in range(spec.stacks):
        directory.manifest.present(stack_file(stack))
        for name in directory.adapters(stack):
            if name not in adapters:
                found = f"stack {stack} has an adapter {name!r:.40}"
                raise StackwiseError(f"{directory.path}: {found}, and config.toml no adapter of that name")
