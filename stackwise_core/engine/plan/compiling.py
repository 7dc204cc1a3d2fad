"""Decision on compiled blocks: whether they repay what compiling takes, and which stacks are left eager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.notes import several
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.rack.compiled_blocks import missing_for_compiling
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.component import origin
from stackwise_core.interfaces.precision import Precision
from stackwise_core.run_files.plan_file import PlanFile

FIRST_SECONDS = {"cpu": 30.0, "cuda": 30.0}
"""Seconds until torch's compiler is loaded and has compiled a first graph: 28 on a CPU (``tests/benchmarks/blocks.py
--compile``); on CUDA, not measured, as much."""
GRAPH_SECONDS = {"cpu": 18.0, "cuda": 18.0}
"""Seconds for each graph after it: 17 to 20 on a CPU, by the same; on CUDA not measured."""
GRAPHS = 4
"""Graphs of a kind of stack: with a gradient to its input, without one, frozen, and documents laid out otherwise."""
SAVED = {"cpu": 0.1, "cuda": 0.28}
"""Share of a step's time that compiled blocks save: on a CPU 0.06 at d_model 1024, 0.13 at 256 (docs/log.md, by the
same); on an H200 0.28, at d_model 1024."""
NARROWEST = {"cpu": 256, "cuda": 1}
"""d_model from which they save anything: at 128 a compiled step takes 1.02 of an eager one on a CPU."""
WORTH = 2.0
"""Times that what is saved must be what compiling takes: both are rough."""


@frozen
class Kind:
    """Kind of a stack, which decides whether its blocks can be compiled, and which graphs they share."""

    precision: Precision
    adapters: tuple[Adapter, ...]

    @property
    def eager(self) -> list[Precision | Adapter]:
        """Its parts that can't be compiled."""
        parts: list[Precision | Adapter] = [self.precision, *self.adapters]
        return [part for part in parts if not part.compiles]

    @property
    def identity(self) -> tuple[int, ...]:
        """Identities of its parts, which tell it from other kinds."""
        return id(self.precision), *map(id, self.adapters)


def with_compiling(planned: Sequence[PhasePlan], setup: Setup) -> tuple[list[PhasePlan], list[str]]:
    """Decide in which phases blocks are compiled; return these with the time that it saves, and notes on it.

    All phases share the graphs, so that it is decided for all of them together. Training steps and boundaries are
    compiled; validation and evaluation are not, whose batches have shapes of their own.
    """
    asked, device = setup.config.run.compile, setup.device.type
    if asked is False:
        return list(planned), []
    kinds = [list(_kinds(planned[: place + 1], setup)) for place in range(len(planned))]
    compiled = {kind.identity for each in kinds for _, kind in each if not kind.eager}
    takes = FIRST_SECONDS[device] + GRAPH_SECONDS[device] * (GRAPHS * len(compiled) - 1)
    share = SAVED[device] if setup.spec.d_model >= NARROWEST[device] else 0.0
    saved = [share * _share(each, setup) * plan.seconds for plan, each in zip(planned, kinds, strict=True)]
    if asked == "auto":
        if sum(saved) < WORTH * takes:
            return list(planned), []
        if missing := missing_for_compiling(setup.device):
            return list(planned), [f'run.compile = "auto" leaves blocks as they are: {missing}.']
    done = [
        evolve(plan, compiles=any(not kind.eager for _, kind in each), seconds=plan.seconds - less)
        for plan, each, less in zip(planned, kinds, saved, strict=True)
    ]
    return done, _notes(done, kinds)


def _kinds(planned: Sequence[PhasePlan], setup: Setup) -> Iterator[tuple[int, Kind]]:
    """Yield the stacks of the last phase's path and their kinds."""
    formats, phase = setup.implementations.formats, planned[-1].phase
    attached = {pair for each in planned for pair in each.phase.adapters}
    for stack in phase.path:
        names = sorted(name for owner, name in attached if owner == stack)
        precision = formats.precision(stack, "active" if stack in phase.trains else "trunk")
        yield stack, Kind(precision, tuple(formats.adapters[name] for name in names))


def _share(kinds: Sequence[tuple[int, Kind]], setup: Setup) -> float:
    """Return the share of a path's blocks that can be compiled."""
    blocks = {stack: setup.spec.blocks[stack] for stack, _ in kinds}
    return sum(blocks[stack] for stack, kind in kinds if not kind.eager) / sum(blocks.values())


def _notes(planned: Sequence[PhasePlan], kinds: Sequence[Sequence[tuple[int, Kind]]]) -> list[str]:
    """Note what is compiled, and what of it is left eager, by whose doing."""
    said = []
    if names := [plan.phase.name for plan in planned if plan.compiles]:
        said.append(f"Blocks are compiled in {several(names)}.")
    parts = {id(part): part for each in kinds for _, kind in each for part in kind.eager}
    for part in parts.values():
        stacks = sorted({stack for each in kinds for stack, kind in each if any(part is one for one in kind.eager)})
        named = several([str(stack) for stack in stacks])
        said.append(f"Blocks with {origin(part)} aren't compiled, which it doesn't support: stacks {named}.")
    return said


def with_recorded_compiling(planned: Sequence[PhasePlan], before: PlanFile) -> tuple[PhasePlan, ...]:
    """Return the phases of a run, compiled as its plan says that it began: compiled numbers are others."""
    return tuple(evolve(plan, compiles=record.compiled) for plan, record in zip(planned, before.phases, strict=True))
