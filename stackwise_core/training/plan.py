"""The plan of a run: its phases, checked, and what each will cost, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from stackwise_core.config.model import Config, DataConfig
from stackwise_core.config.source_run import PLAN
from stackwise_core.data.sources import named_texts
from stackwise_core.errors import UsageError
from stackwise_core.inference.evaluate import BandRoute
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.options import ByteSize
from stackwise_core.runs.directory import RunDirectory
from stackwise_core.runs.shapes import check_shapes
from stackwise_core.runs.source import Source
from stackwise_core.training.adapting import settle_adapters
from stackwise_core.training.notes import notes
from stackwise_core.training.phase_plan import PhasePlan, price
from stackwise_core.training.phase_steps import largest_window
from stackwise_core.training.plan_checks import (
    check_adapters,
    check_division,
    check_phases,
    check_placement,
    check_stacks_named,
    check_steps_divide,
    settle_objective,
    settle_routes,
)
from stackwise_core.training.setup import Setup
from stackwise_core.training.trunk_streaming import streams_trunk
from stackwise_core.writable import check_writable


def _json_value(instance: object, attribute: object, value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


ESTIMATES = ("memory", "disk", "streams", "flops", "boundary")
"""What a phase in JSON has of costs, and of what follows from them: the same phase may have others elsewhere."""
HELPS = {
    "process": "A larger budget helps.",
    "weights": "A smaller rack, or a precision.trunk such as nf4, needs less.",
    "gradients": "A smaller stack (rack.blocks_per_stack) needs less.",
    "optimizer": 'A smaller stack (rack.blocks_per_stack), or training.optimizer = "adamw_8bit", needs less.',
    "activations": "A smaller training.batch_size, with more training.gradient_accumulation, needs less.",
    "boundaries": 'A smaller training.window needs less, and so does a cache that isn\'t in memory (use = "disk").',
}
"""What lessens each part of the memory."""


@frozen
class Plan:
    """The phases of a run in order."""

    spec: RackSpec
    phases: tuple[PhasePlan, ...]
    routes: tuple[BandRoute, ...]
    """How the finished rack uses its stacks."""
    exits: frozenset[int]
    """Stacks whose exit the head was trained to read at."""
    window: int
    """Sequences of the largest window."""
    cache: str | None
    """The name of the cache backend, if there is one."""
    streams: bool
    """Whether only one stack is in memory at a time where a text passes the whole rack."""
    tokenizer: str
    """Fingerprint of the tokenizer, in hexadecimal."""
    corpus: str
    """Fingerprint of the text and of how it was cut, in hexadecimal."""
    notes: tuple[str, ...]
    """What a user should know before starting."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "rack": {**asdict(self.spec, value_serializer=_json_value), "parameters": self.spec.parameters},
            "tokenizer": self.tokenizer,
            "corpus": self.corpus,
            "routes": [asdict(route) for route in self.routes],
            "exits": sorted(self.exits),
            "streams": self.streams,
            "notes": list(self.notes),
            "phases": [
                {
                    **asdict(planned.phase, value_serializer=_json_value),
                    "entry": planned.phase.entry,
                    "steps": planned.steps,
                    "tokens": planned.tokens,
                    "trainable_parameters": planned.trainable_parameters,
                    "frozen_parameters": planned.frozen_parameters,
                    "band": planned.band and list(planned.band),
                    "memory": {**asdict(planned.memory), "total": planned.memory.total},
                    "disk": planned.disk,
                    "streams": planned.streams,
                    "flops": planned.flops,
                    "boundary": planned.boundary and asdict(planned.boundary),
                }
                for planned in self.phases
            ],
        }


def make_plan(setup: Setup) -> Plan:
    """Plan a run and price each phase.

    Raises:
        UsageError: the mode can't plan this rack, or a phase contradicts the objective.
        StackwiseError: the mode is a plugin whose plan makes no sense.
    """
    training, mode = setup.config.training, setup.implementations.mode
    whose = origin(mode)
    check_stacks_named(setup.config, setup.spec)
    phases = mode.plan(setup.spec, training)
    check_phases(phases, setup.spec, whose)
    check_division(phases, setup.spec, training, whose)
    phases = settle_adapters(phases, setup.config.adapter, setup.spec, setup.implementations.formats)
    check_adapters(phases, setup.implementations.formats.adapters, setup.spec)
    routes = settle_routes(mode.routes(setup.spec), setup.spec, setup.noise, whose)
    there = setup.spec.given.union(*(phase.path for phase in phases))
    untrained = {stack for route in routes for stack in route.path} - there
    if untrained:
        raise ContractError(
            mode,
            f"no phase passes stack {min(untrained)}, and its routes use it: plan a phase for it, or give the mode "
            "routes() of its own",
        )
    if training.objective == "clm" and len(routes) > 1:
        raise UsageError(
            f'training.objective = "clm" masks nothing, and {whose} gives each stack a band of mask fractions. Use '
            "another mode."
        )
    if training.noise_over == "both":
        check_steps_divide([edge for phase in phases for edge in phase.progress], setup.noise)
    settled = [settle_objective(phase, setup.noise, training) for phase in phases]
    if training.objective != "clm":
        check_placement(setup.noise, setup.corpus.train, setup.config.run.seed)
    planned = [price(phase, settled[:place], setup) for place, phase in enumerate(settled)]
    return Plan(
        spec=setup.spec,
        phases=tuple(planned),
        routes=routes,
        exits=trained_exits(phases, routes, setup.source),
        window=largest_window(setup),
        cache=None if setup.config.cache_backend is None else setup.config.cache_backend.use,
        streams=any(plan.streams for plan in planned) or streams_trunk(planned[-1].memory, setup),
        tokenizer=setup.tokenizer.fingerprint.hex(),
        corpus=setup.corpus.fingerprint,
        notes=(*_source_notes(setup), *notes(planned, setup)),
    )


def _source_notes(setup: Setup) -> list[str]:
    return setup.source.notes(setup.spec, setup.tokenizer.mask_id) if setup.source else []


def trained_exits(phases: Sequence[Phase], routes: Sequence[BandRoute], source: Source | None) -> frozenset[int]:
    """Stacks whose exit was read in training, with nothing below it that changed since."""
    paths: dict[int, tuple[int, ...]] = {}
    if source is not None:
        given = sorted(source.stacks)
        paths = {stack: tuple(given[: given.index(stack) + 1]) for stack in source.exits}
    for phase in phases:
        read, trained = phase.path[-1], set(paths)
        unchanged, changes = {} if phase.embedding else paths, phase.trains | phase.adapts
        paths = {stack: path for stack, path in unchanged.items() if not changes & set(path)}
        if phase.exit_norm is not None or read in trained | phase.adapts:
            paths[read] = phase.path
    prefixes = {route.path[: place + 1] for route in routes for place in range(len(route.path))}
    return frozenset(stack for stack, path in paths.items() if path in prefixes)


def stores_directory(config: Config) -> Path | None:
    """Where the configuration has boundaries; None: in the run's own directory."""
    directory = None if config.cache_backend is None else config.cache_backend.options.directory
    return None if directory is None else Path(directory)


def check_stores_directory(directory: Path | None) -> None:
    """Refuse a ``cache_backend.directory`` that boundaries can't be written to."""
    if directory is not None:
        check_writable(directory, "cache_backend.directory")


def check_disk(plan: Plan, directory: Path) -> None:
    """Refuse a plan whose boundaries don't fit on the disk.

    Args:
        directory: where they will be, or the nearest folder above that exists.
    """
    while not directory.exists():
        directory = directory.parent
    needed, free = max(planned.disk for planned in plan.phases), shutil.disk_usage(directory).free
    if needed > free:
        raise UsageError(
            f"The boundaries need {ByteSize(needed)} on disk, and {directory} has {ByteSize(free)} free. "
            "Take another cache_backend.directory, a smaller cache_backend.capacity, fewer training.masks_per_sample, "
            "or a shorter data.seq_len."
        )


def check_memory(plan: Plan, budget: ByteSize | None) -> None:
    """Refuse a plan that needs more memory than the run may take.

    Args:
        budget: ``training.memory_budget``; None: nothing is refused.
    """
    most = max(plan.phases, key=lambda planned: planned.memory.total)
    if budget is None or most.memory.total <= budget:
        return
    part, taken = max(asdict(most.memory).items(), key=lambda part: part[1])
    helps, streamed = HELPS[part], most.memory.total
    if most.boundary is not None and not most.streams:
        streamed = most.boundary.streamed
    if streamed < most.memory.total and (part != "process" or streamed <= budget):
        helps = 'training.trunk_residency = "stream" needs less.'
    taker = "Python and torch" if part == "process" else part
    raise UsageError(
        f'Phase "{most.phase.name}" needs {ByteSize(most.memory.total)} of memory, {ByteSize(taken)} of it for '
        f"{taker}, and training.memory_budget is {budget}. {helps}"
    )


def check_same_plan(plan: Plan, directory: RunDirectory, data: DataConfig) -> None:
    """Refuse to go on with a run whose plan isn't what its configuration comes to now, or whose weights aren't its own.

    Args:
        data: what names the text now.

    Raises:
        UsageError: the corpus, the tokenizer or a plugin is another than when it began.
        StackwiseError: its plan is damaged, or weights are those of another rack.
    """

    def essence(values: dict[str, Any]) -> dict[str, Any]:
        phases = [{key: value for key, value in phase.items() if key not in ESTIMATES} for phase in values["phases"]]
        return {**values, "phases": phases, "notes": [], "streams": None}

    now = json.loads(json.dumps(essence(plan.to_json())))
    try:
        before = essence(directory.read_json(PLAN))
    except (LookupError, TypeError, AttributeError):  # it is no plan at all
        before = {}
    if before.get("tokenizer") == now["tokenizer"] and before.get("corpus") != now["corpus"]:
        texts = ", ".join(text.corpus for text in named_texts(data))
        raise UsageError(
            f"{directory.path} can't go on: what it was trained on is no longer the text of {texts}. Put that text "
            "back, name where it is now (--set data.corpus=...), or begin a new run with --fresh."
        )
    if now != before:
        raise UsageError(
            f"{directory.path} can't go on: its configuration comes to another plan now than when it began. Was the "
            "corpus, the tokenizer, a plugin or what rack.init_from names changed?"
        )
    check_shapes(directory, plan.spec)
