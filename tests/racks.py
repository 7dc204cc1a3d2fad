"""A run's rack, computed from its full-precision files alone."""

from pathlib import Path

import torch
from attrs import evolve

from stackwise_core.engine.rack.rack import Ends, stack_of
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.rack_spec import RackSpec


def master_logits(
    directory: Path, spec: RackSpec, ids: torch.Tensor, *, depth: int | None = None, attention: str | None = None
) -> torch.Tensor:
    """Logits [B, T, V] of ids [B, T], read out at a depth."""
    run, spec = RunDirectory(directory), spec if attention is None else evolve(spec, attention=attention)
    ends = Ends(spec, mask_id=0)
    ends.load_state_dict(run.read_ends(spec)[None])
    with torch.no_grad():
        hidden = ends.embed(ids, torch.zeros(len(ids), dtype=torch.float64))
        for index in range(depth or spec.stacks):
            stack = stack_of(spec, index, run.read_stack(index))
            hidden = stack(hidden, ends.context(torch.ones_like(ids)))
        return ends.logits(hidden, stack.norm)
