"""The rack of a finished run as in its plan: how a trainer mode and a mask schedule completed the configuration."""

from __future__ import annotations

from typing import Literal

from attrs import evolve, frozen

from stackwise_core.config.source_run import SourceRun
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.run_files.names import PLAN, stack_file


@frozen
class PlannedRack:
    """Record of a rack in a plan, beyond its configuration: decisions of mode, schedule and objective."""

    blocks: tuple[int, ...]
    ends: Literal["shared", "per_stack"]
    time_fractions: tuple[float, ...]
    attention: Literal["bidirectional", "causal"]

    @classmethod
    def of(cls, directory: RunDirectory, planned: SourceRun) -> PlannedRack:
        """Read the rack from a plan.

        Raises:
            StackwiseError: it tells of more stacks or blocks than there are.
        """
        spec = planned.plan.rack.spec
        for stack, blocks in enumerate(spec.blocks):  # before anything is made of so many
            directory.manifest.present(stack_file(stack))
            if blocks > directory.stack_bytes(stack):
                raise StackwiseError(
                    f"{directory.path / PLAN}: not the plan of this run: stack {stack} has fewer blocks"
                )
        return cls(spec.blocks, spec.ends, spec.time_fractions, spec.attention)

    def partition(self, spec: RackSpec) -> RackSpec:
        """Return a configuration's rack as the trainer mode had partitioned it, with the objective's attention."""
        return evolve(spec, blocks=self.blocks, ends=self.ends, attention=self.attention)
