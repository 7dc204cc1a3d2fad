"""The rack of a finished run as in its plan: how a trainer mode and a mask schedule completed the configuration."""

from __future__ import annotations

from math import isfinite
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
            StackwiseError: it isn't what a run writes, or says of more stacks than there are.
        """
        rack = planned.rack
        ends, fractions, attention = rack.get("ends", "shared"), rack.get("time_fractions", []), rack["attention"]
        fine = ends in ("shared", "per_stack") and isinstance(fractions, list)
        fine = fine and attention in ("bidirectional", "causal")
        if not fine or not all(type(each) in (int, float) and isfinite(each) and 0 <= each <= 1 for each in fractions):
            raise StackwiseError(
                f"{directory.path / PLAN}: not the plan of a run: rack has other ends, attention or time_fractions"
            )
        for stack, blocks in enumerate(planned.blocks):  # before anything is made of so many
            directory.manifest.present(stack_file(stack))
            if blocks > directory.stack_bytes(stack):
                raise StackwiseError(
                    f"{directory.path / PLAN}: not the plan of this run: stack {stack} has fewer blocks"
                )
        return cls(planned.blocks, ends, tuple(map(float, fractions)), attention)

    def partition(self, spec: RackSpec) -> RackSpec:
        """Return a configuration's rack as the trainer mode had partitioned it, with the objective's attention."""
        return evolve(spec, blocks=self.blocks, ends=self.ends, attention=self.attention)
