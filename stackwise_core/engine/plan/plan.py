"""The plan of a run: its phases, checked, and what each will cost, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from stackwise_core.config.model import TrainingConfig
from stackwise_core.engine.phases.adapting import resolve_adapters
from stackwise_core.engine.phases.learning_rate import rate_points
from stackwise_core.engine.phases.phase_steps import largest_window, sample_order
from stackwise_core.engine.phases.plan_checks import (
    check_adapters,
    check_division,
    check_masks,
    check_patience,
    check_phases,
    check_stacks_named,
    check_steps_divide,
    resolve_objective,
    resolve_routes,
)
from stackwise_core.engine.phases.setup import Setup
from stackwise_core.engine.plan.cache_choice import phases_to_recompute, why_recomputed, with_seconds
from stackwise_core.engine.plan.compiling import with_compiling, with_recorded_compiling
from stackwise_core.engine.plan.first_step import take_first_step
from stackwise_core.engine.plan.notes import notes
from stackwise_core.engine.plan.passing_on import longest
from stackwise_core.engine.plan.phase_plan import PhasePlan, price
from stackwise_core.engine.plan.residency import streams_trunk
from stackwise_core.engine.plan.speed import Speed, computes_in, measure_speed, phase_seconds
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.shapes import check_shapes
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.run_files.names import PLAN
from stackwise_core.run_files.plan_file import (
    BoundaryRecord,
    HostMemoryRecord,
    MemoryRecord,
    PhaseRecord,
    PlanFile,
    RackRecord,
    SpeedRecord,
)

ESTIMATES = (
    "recomputed",
    "memory",
    "host",
    "disk",
    "run_files",
    "streams",
    "offload",
    "offloaded",
    "compiled",
    "rates",
    "flops",
    "boundary",
    "seconds",
)
"""Fields of a phase in JSON that are costs, or follow from them: the same phase may have others elsewhere."""


@frozen
class Plan:
    """The phases of a run in order."""

    spec: RackSpec
    phases: tuple[PhasePlan, ...]
    routes: tuple[BandRoute, ...]
    """Routes of the finished rack."""
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
    """Notes for the user before starting."""
    speed: Speed
    """Speed of this machine, by a short measurement."""

    @property
    def recomputed(self) -> frozenset[str]:
        """Names of the phases whose boundaries are computed anew though a cache could keep them."""
        return frozenset(planned.phase.name for planned in self.phases if planned.recomputed)

    @property
    def seconds(self) -> float:
        """Estimated time of all phases; validation comes on top."""
        return sum(planned.seconds for planned in self.phases)

    @property
    def file(self) -> PlanFile:
        """The record of it that is written."""
        return PlanFile(
            rack=RackRecord(spec=self.spec, parameters=self.spec.parameters),
            tokenizer=self.tokenizer,
            corpus=self.corpus,
            routes=self.routes,
            exits=tuple(sorted(self.exits)),
            streams=self.streams,
            notes=self.notes,
            speed=SpeedRecord(**asdict(self.speed)),
            phases=tuple(map(_phase_record, self.phases)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return self.file.to_json()


def _phase_record(planned: PhasePlan) -> PhaseRecord:
    return PhaseRecord(
        phase=planned.phase,
        entry=planned.phase.entry,
        steps=planned.steps,
        tokens=planned.tokens,
        trainable_parameters=planned.trainable_parameters,
        frozen_parameters=planned.frozen_parameters,
        band=planned.band,
        memory=MemoryRecord(**asdict(planned.memory), total=planned.memory.total),
        host=None if planned.host is None else HostMemoryRecord(**asdict(planned.host), total=planned.host.total),
        disk=planned.disk,
        run_files=planned.run_files,
        streams=planned.streams,
        schedule=planned.schedule,
        rates=planned.rates,
        offload=planned.offload,
        offloaded=planned.offloaded,
        compiled=planned.compiles,
        flops=planned.flops,
        seconds=planned.seconds,
        recomputed=planned.recomputed,
        boundary=None if planned.boundary is None else BoundaryRecord(**asdict(planned.boundary)),
    )


def make_plan(setup: Setup) -> Plan:
    """Plan a run and price each phase.

    Raises:
        UsageError: the mode can't plan this rack, or a phase contradicts the objective.
        StackwiseError: the mode is a plugin whose plan makes no sense.
    """
    training, mode, objective = setup.config.training, setup.implementations.mode, setup.implementations.objective
    whose = origin(mode)
    check_stacks_named(setup.config, setup.spec)
    phases = mode.plan(setup.spec, training.budget)
    check_phases(phases, setup.spec, whose)
    check_division(phases, setup.spec, training, whose)
    check_patience(phases, training)
    phases = resolve_adapters(phases, setup.config.adapter, setup.spec, setup.implementations.formats)
    check_adapters(phases, setup.implementations.formats.adapters, setup.spec)
    routes = resolve_routes(mode.routes(setup.spec), setup.spec, setup.noise, whose)
    there = setup.spec.given.union(*(phase.path for phase in phases))
    untrained = {stack for route in routes for stack in route.path} - there
    if untrained:
        raise ContractError(
            mode,
            f"no phase passes stack {min(untrained)}, and its routes use it: plan a phase for it, or give the mode "
            "routes() of its own",
        )
    if objective.options.causal and len(routes) > 1:
        raise UsageError(
            f'objective = "{setup.config.objective.use}" masks nothing, and {whose} gives each stack a band of mask '
            "fractions. Use another mode."
        )
    if training.noise_over == "both":
        check_steps_divide([edge for phase in phases for edge in phase.progress], setup.noise)
    resolved = [resolve_objective(phase, setup.noise, training, objective) for phase in phases]
    if not objective.options.causal:
        check_masks(setup.noise, setup.corpus.train, setup.config.run.seed, objective, setup.tokenizer)
    dtype = computes_in(setup.implementations.formats.active, setup.device)
    if setup.device.type == "cpu":  # what it loads is in the process's memory, which prices begin with
        take_first_step(setup.device, dtype)
    planned = _priced(resolved, setup)
    speed = measure_speed(setup, dtype)  # after that: what it takes of memory isn't the phases'

    def price_at(place: int, recomputed: frozenset[str]) -> PhasePlan:
        now = evolve(setup, recomputed=recomputed)
        return price(resolved[place], resolved[:place], now) if recomputed else planned[place]

    recomputed, seconds, store_rates = phases_to_recompute(resolved, setup, speed, price_at)
    if recomputed:
        setup = evolve(setup, recomputed=recomputed)
        planned = _priced(resolved, setup)
    planned = [with_seconds(each, seconds) for each in planned]
    if training.course == "run":
        planned = _in_one_course(planned)
    planned = [evolve(each, rates=planned_rates(each, training)) for each in planned]
    said = [*notes(planned, setup), *why_recomputed(planned, store_rates)]
    timed, on_compiling = with_compiling(
        [evolve(each, seconds=phase_seconds(each, setup, speed)) for each in planned], setup
    )
    plan = Plan(
        spec=setup.spec,
        phases=tuple(timed),
        routes=routes,
        exits=trained_exits(phases, routes, setup.source),
        window=largest_window(setup),
        cache=None if setup.config.cache_backend is None else setup.config.cache_backend.use,
        streams=any(plan.streams or plan.offload is not None for plan in planned)
        or streams_trunk(planned[-1].memory, setup),
        tokenizer=setup.tokenizer.fingerprint.hex(),
        corpus=setup.corpus.fingerprint,
        notes=(*_source_notes(setup), *said, *on_compiling),
        speed=speed,
    )
    try:
        _as_read(plan, Path(PLAN))
    except (StackwiseError, TypeError, ValueError) as error:
        raise ContractError(whose, f"plan() gave phases that can't be written: {error}") from error
    return plan


def as_begun(plan: Plan, directory: RunDirectory) -> Plan:
    """Return the plan of a run with what was decided when it began, and would change its numbers.

    Raises:
        StackwiseError: its plan is damaged.
    """
    before = PlanFile.from_json(directory.read_json(PLAN), directory.path / PLAN)
    return evolve(plan, phases=with_recorded_compiling(plan.phases, before))


def _priced(phases: Sequence[Phase], setup: Setup) -> list[PhasePlan]:
    """Price phases, with room for all steps that others may pass on to them."""
    planned = [price(phase, phases[:place], setup) for place, phase in enumerate(phases)]
    most = longest(phases, sample_order(setup))
    if most != phases:  # boundaries need room for all steps that a phase may get
        for place, phase in enumerate(most):
            at_most = price(phase, most[:place], setup)
            memory = max(planned[place].memory, at_most.memory, key=lambda each: each.total)
            host = max(planned[place].host, at_most.host, key=lambda each: 0 if each is None else each.total)
            disk = max(planned[place].disk, at_most.disk)
            planned[place] = evolve(planned[place], disk=disk, memory=memory, host=host)
    return planned


def _as_read(plan: Plan, file: Path) -> PlanFile:
    """Return a plan's record as it is read from its file."""
    return PlanFile.from_json(json.loads(json.dumps(plan.to_json())), file)


def _source_notes(setup: Setup) -> list[str]:
    return setup.source.notes(setup.spec, setup.tokenizer.mask_id) if setup.source else []


def _in_one_course(planned: Sequence[PhasePlan]) -> list[PhasePlan]:
    """Give all phases their places in one learning-rate schedule."""
    total, first = sum(each.steps for each in planned), 0
    placed = []
    for each in planned:
        placed.append(evolve(each, schedule=(first, total)))
        first += each.steps
    return placed


def planned_rates(planned: PhasePlan, training: TrainingConfig) -> tuple[tuple[int, float], ...]:
    """Return the learning rates of a phase, as ``PhasePlan.rates`` has them."""
    phase, (first, total) = planned.phase, planned.schedule
    peak = phase.lr * (training.block_lr if phase.trains or not phase.adapts else training.adapter_lr)
    return tuple((step, peak * share) for step, share in rate_points(first, planned.steps, total, training))


def trained_exits(phases: Sequence[Phase], routes: Sequence[BandRoute], source: Source | None) -> frozenset[int]:
    """Return the stacks whose exit was read in training, with nothing below it that changed since."""
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


def check_same_plan(plan: Plan, directory: RunDirectory, corpora: Sequence[str]) -> None:
    """Refuse to resume a run whose plan isn't what its configuration gives now, or whose weights aren't its own.

    Args:
        corpora: where the texts are now.

    Raises:
        UsageError: the corpus, the tokenizer or a plugin is another than when it began.
        StackwiseError: its plan is damaged, or weights are those of another rack.
    """

    file = directory.path / PLAN
    before = PlanFile.from_json(directory.read_json(PLAN), file)
    now = _as_read(plan, file)
    if before.tokenizer == now.tokenizer and before.corpus != now.corpus:
        texts = ", ".join(corpora)
        raise UsageError(
            f"{directory.path} can't be resumed: what it was trained on is no longer the text of {texts}. Put that "
            "text back, name where it is now (--set data.corpus=...), or begin a new run with --fresh."
        )
    if _essence(now) != _essence(before):
        raise UsageError(
            f"{directory.path} can't be resumed: its configuration makes another plan now than when it began. Was the "
            "corpus, the tokenizer, a plugin or what rack.init_from names changed?"
        )
    check_shapes(directory, plan.spec)


def _essence(plan: PlanFile) -> dict[str, Any]:
    """Return what must be the same where a run resumes."""
    values = plan.to_json()
    phases = [{key: value for key, value in phase.items() if key not in ESTIMATES} for phase in values["phases"]]
    return {**values, "phases": phases, "notes": [], "streams": None, "speed": None}
