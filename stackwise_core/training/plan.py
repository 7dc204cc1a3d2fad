"""The plan of a run: its phases, checked, and what each will cost, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from attrs import asdict, evolve, frozen

from stackwise_core.config.model import Config, TrainingConfig
from stackwise_core.config.source_run import PLAN
from stackwise_core.data.noise import Noise
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.inference.evaluate import BandRoute
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import Route
from stackwise_core.options import ByteSize
from stackwise_core.runs.directory import RunDirectory
from stackwise_core.runs.source import Source
from stackwise_core.training.adapting import settle_adapters
from stackwise_core.training.cost import (
    PhasePlan,
    boundary_bytes,
    boundary_layout,
    distinct_draws,
    phase_epochs,
    price,
    sample_order,
)
from stackwise_core.training.setup import Setup


def _json_value(instance: object, attribute: object, value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


@frozen
class Plan:
    """The phases of a run in order."""

    spec: RackSpec
    phases: tuple[PhasePlan, ...]
    routes: tuple[BandRoute, ...]
    """How the finished rack uses its stacks."""
    exits: frozenset[int]
    """Stacks whose exit the head was trained to read at."""
    stores: int
    """How many boundaries are kept at the same time, at most; they share the cache's capacity."""
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
                    "flops": planned.flops,
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
    training, mode, name = setup.config.training, setup.implementations.mode, setup.config.trainer_mode.use
    check_stacks_named(setup.config, setup.spec)
    phases = mode.plan(setup.spec, training)
    check_phases(phases, setup.spec, name)
    phases = settle_adapters(phases, setup.config.adapter, setup.spec, setup.implementations.formats)
    routes = settle_routes(mode.routes(setup.spec), setup.spec, setup.noise, name)
    there = setup.spec.given.union(*(phase.path for phase in phases))
    untrained = {stack for route in routes for stack in route.path} - there
    if untrained:
        raise StackwiseError(
            f'trainer mode "{name}": no phase passes stack {min(untrained)}, and its routes use it. '
            "Plan a phase for it, or give the mode routes() of its own."
        )
    if training.objective == "clm" and len(routes) > 1:
        raise UsageError(
            f'training.objective = "clm" masks nothing, and trainer mode "{name}" gives each stack a band of mask '
            "fractions. Use another mode."
        )
    if training.noise_over == "both":
        check_steps_divide([edge for phase in phases for edge in phase.progress], setup.noise)
    settled = [settle_objective(phase, setup.noise, training) for phase in phases]
    planned = [price(phase, settled[:place], setup) for place, phase in enumerate(settled)]
    return Plan(
        spec=setup.spec,
        phases=tuple(planned),
        routes=routes,
        exits=trained_exits(phases, routes, setup.source),
        stores=stores_at_once(planned, setup),
        tokenizer=setup.tokenizer.fingerprint.hex(),
        corpus=setup.corpus.fingerprint,
        notes=tuple(notes(planned, setup)),
    )


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


def check_stacks_named(config: Config, spec: RackSpec) -> None:
    """Refuse a setting for a stack that the rack doesn't have."""
    tables: dict[str, Mapping[int, object]] = {
        "training.stack_lr_multipliers": config.training.stack_lr_multipliers,
        "precision.stacks": config.precision.stacks,
    }
    for key, table in tables.items():
        beyond = [stack for stack in table if stack >= spec.stacks]
        if beyond:
            raise UsageError(f"{key} names stack {beyond[0]}, and the rack's stacks are 0 to {spec.stacks - 1}.")


def settle_routes(routes: list[Route], spec: RackSpec, noise: Noise, mode: str) -> tuple[BandRoute, ...]:
    """The routes in the order of their mask fractions, which they divide (0, 1] into.

    Raises:
        StackwiseError: they don't; the fault is the trainer mode's.
        UsageError: discrete time steps lie across them.
    """
    ordered = sorted(routes, key=lambda route: route.progress)
    ends = [end for route in ordered for end in route.progress]
    if not ends or ends[0] != 0 or ends[-1] != 1 or ends[1:-1:2] != ends[2::2]:
        raise StackwiseError(f'trainer mode "{mode}": its routes have the progress {ends}, which isn\'t all of [0, 1]')
    if not all(route.path and set(route.path) <= set(range(spec.stacks)) for route in ordered):
        raise StackwiseError(f'trainer mode "{mode}": a route goes through a stack that the rack doesn\'t have')
    check_steps_divide([edge for route in ordered for edge in route.progress], noise)
    low, high = noise.band((0.0, 1.0))
    # The first and the last take what the schedule leaves out of (0, 1].
    first, last = (0.0, 1.0) if low <= high else (1.0, 0.0)
    edges = [first, *(noise.band(route.progress)[1] for route in ordered[:-1]), last]
    settled = [
        BandRoute(route.path, (min(edge, following), max(edge, following)))
        for route, edge, following in zip(ordered, edges, edges[1:], strict=False)
    ]
    if len(ordered) > 1 and any(low == high for low, high in (noise.band(route.progress) for route in ordered)):
        raise UsageError(
            f'trainer mode "{mode}" gives each stack a band of mask fractions, and the mask schedule has no width for '
            "all of them. Take a schedule that rises all the way, such as linear from 0 to 1."
        )
    return tuple(sorted(settled, key=lambda route: route.band))


def check_steps_divide(edges: Iterable[float], noise: Noise) -> None:
    """Refuse discrete time steps of which one would belong to two stacks in part.

    Args:
        edges: of the stretches of progress that stacks have for themselves.
    """
    count = len(noise.steps)
    if any(abs(edge * count - round(edge * count)) > 1e-6 for edge in edges):
        raise UsageError(
            f"training.time_steps: {count} time steps can't be divided evenly among the stacks, each of which has its "
            "own. Take a multiple of the number of stacks."
        )


def check_phases(phases: list[Phase], spec: RackSpec, mode: str) -> None:
    """Refuse a plan that the engine can't execute; the fault is the trainer mode's."""

    def wrong(phase: Phase, what: str) -> StackwiseError:
        return StackwiseError(f'trainer mode "{mode}": phase "{phase.name}" {what}')

    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise StackwiseError(f'trainer mode "{mode}": plan() gave no list of phases')
    there, names = set(spec.given), set[str]()
    for phase in phases:
        if phase.name in names:
            raise wrong(phase, "has the name of another phase, and measurements go by name")
        names.add(phase.name)
        if not phase.path or len(set(phase.path)) < len(phase.path) or not set(phase.path) <= set(range(spec.stacks)):
            raise wrong(phase, f"has the path {phase.path} in a rack of {spec.stacks} stacks")
        if not phase.trains | phase.adapts <= set(phase.path):
            raise wrong(phase, "trains a stack that isn't in its path")
        if not (phase.trains or phase.adapts or phase.embedding or phase.head):
            raise wrong(phase, "trains nothing")
        if phase.head and not phase.embedding and spec.tie_embeddings:
            raise wrong(phase, "trains the head, which is the embedding's transpose, over a frozen embedding")
        if phase.trains & phase.adapts:
            raise wrong(phase, "trains all of a stack, and its adapters only")
        if phase.adapters or phase.merges:
            raise wrong(phase, "names adapters, which [adapter] decides on")
        if phase.epochs <= 0 or phase.masks_per_sample < 1 or (phase.steps is not None and phase.steps < 1):
            raise wrong(phase, "has no budget: epochs must be above 0, steps and masks_per_sample 1 or more")
        if phase.begins < 0 or phase.lr < 0:
            raise wrong(phase, "begins before the first step, or has a negative learning rate")
        if spec.ends == "per_stack" and (phase.embedding or phase.head) and len(phase.path) > 1:
            raise wrong(phase, "passes several stacks, each of which has an embedding and a head of its own")
        for place, stack in enumerate(phase.path):
            neighbours = phase.path[place - 1 : place] or phase.path[1:2]
            if phase.start != "copy" or stack in there:
                continue
            if not set(neighbours) & there:
                raise wrong(phase, f"starts stack {stack} as a copy, and nothing beside it was trained before")
            if spec.blocks[stack] != spec.blocks[neighbours[0]]:
                raise wrong(phase, f"starts stack {stack} as a copy of one with another number of blocks")
        there |= set(phase.path)
        if not 0 <= phase.progress[0] <= phase.progress[1] <= 1:
            raise wrong(phase, f"has the progress {phase.progress}, outside of [0, 1]")


def settle_objective(phase: Phase, noise: Noise, training: TrainingConfig) -> Phase:
    """Fill in the weighting that was left open, and refuse one under which the loss means nothing."""
    if training.objective == "clm":  # no masks, and so one draw a sample
        return evolve(phase, weighting="mean", masks="fixed", masks_per_sample=1)
    schedule = noise.schedule
    check_schedule(phase, schedule)
    low, high = noise.band(phase.progress)
    if max(low, high) == 0:
        raise UsageError(
            f'phase "{phase.name}" has the mask fraction 0, and so nothing to predict. '
            "Raise mask_schedule.min_fraction."
        )
    one_fraction = low == high
    places_its_own = type(schedule).place is not MaskSchedule.place
    only_mean = one_fraction or places_its_own or training.objective == "mlm"
    weighting = phase.weighting or training.weighting or ("mean" if only_mean else "nelbo")
    if weighting == "nelbo" and one_fraction:
        raise UsageError(
            f'training.weighting = "nelbo": phase "{phase.name}" has the one mask fraction {low:g}, and so no band to '
            'bound a likelihood over. Use "mean", or a schedule whose fraction changes.'
        )
    if weighting == "nelbo" and places_its_own:
        raise UsageError(
            'training.weighting = "nelbo" holds for independently masked tokens only, and this mask schedule places '
            'them its own way. Use "mean".'
        )
    return evolve(phase, weighting=weighting)


def check_schedule(phase: Phase, schedule: MaskSchedule) -> None:
    """Refuse a schedule that isn't what its interface promises; the fault is the plugin's."""
    name = f"the mask schedule {type(schedule).__name__}"
    progress = torch.linspace(*phase.progress, 65, dtype=torch.float64, requires_grad=True)
    fraction = schedule.fraction(progress)
    outside = fraction[~((fraction >= 0) & (fraction <= 1))]
    if len(outside):
        raise StackwiseError(f"{name} gave the fraction {outside[0].item():g}, outside of [0, 1]")
    steps = fraction.detach().diff()
    if (steps > 0).any() and (steps < 0).any():
        raise StackwiseError(f"{name} rises and falls between {phase.progress[0]:g} and {phase.progress[1]:g}")
    if not fraction.requires_grad:
        raise StackwiseError(f"{name} can't be differentiated by autograd, and the loss weight needs its slope")


def stores_at_once(planned: Sequence[PhasePlan], setup: Setup) -> int:
    """Of how many phases boundaries are kept at the same time, at most."""
    cache = setup.implementations.cache
    kept = 1 if cache is None else cache.options.keep_time_steps
    return max(kept, 2 if any(plan.made_from_below for plan in planned) else 1)


def notes(planned: list[PhasePlan], setup: Setup) -> list[str]:
    """What a user should know before starting."""
    training, cache = setup.config.training, setup.implementations.cache
    with_trunk = [plan for plan in planned if plan.phase.frozen_prefix]
    cached = [plan for plan in with_trunk if plan.phase.boundaries == "cache"]
    said = []
    masked = training.objective != "clm"
    if masked and with_trunk and training.masks == "fixed" and training.masks_per_sample == 1:
        said.append(
            "masks_per_sample = 1: a stack overfits to the one mask of each sample; 4 do nearly as well as fresh ones."
        )
    if cache is not None and not cached:
        said.append("No phase keeps a boundary beyond its window, so nothing is cached.")
    live = [plan.phase.name for plan in planned if adapts_below_what_trains(plan.phase)]
    if cache is not None and live:
        names = ", ".join(live)
        said.append(
            f"The cache is off in {names}: adapters train in the trunk, so that its boundary changes with every step."
        )
    if cached and cache is not None:
        order = sample_order(setup)
        by_boundary = phases_by_boundary(cached)
        epochs, draws = (max(f(phase, order) for phase in by_boundary) for f in (phase_epochs, distinct_draws))
        if epochs <= draws:
            trained_on = f"Each boundary is trained on once (epochs a phase: {epochs:.3g}, draws a sample: {draws:.3g})"
            if any(plan.made_from_below for plan in planned):
                said.append(f"{trained_on}, so the cache saves only the stacks below the last one of the trunk.")
            elif len(by_boundary) > 1:
                said.append(f"{trained_on}, and phases share no draws, so the cache saves nothing.")
            else:
                said.append(f"{trained_on}, so the cache saves nothing.")
        if cache.options.capacity is not None:
            phases = [plan.phase for plan in planned]
            needed = max(boundary_bytes(phase, phases[:place], setup) for place, phase in enumerate(phases))
            window = (
                min(training.window, len(setup.corpus.train)) * boundary_layout(cached[0].phase, setup).bytes_per_entry
            )
            if 2 * window > cache.options.capacity // stores_at_once(planned, setup):
                said.append(
                    f"cache_backend.capacity = {cache.options.capacity} doesn't hold the {ByteSize(2 * window)} of two "
                    "windows: most boundaries are computed again for each batch, which is slower than no cache at "
                    "all. A smaller training.window or a larger capacity helps."
                )
            elif needed > cache.options.capacity:
                said.append(
                    f"cache_backend.capacity = {cache.options.capacity} is less than the {ByteSize(needed)} of "
                    "boundaries: some are evicted and computed again."
                )
    if masked:
        said += unseen([plan.band for plan in planned if plan.band is not None])
    if setup.config.training.head == "trains" and any(plan.phase.head for plan in planned[1:]):
        said.append("The head goes on training: what it reads at shallower depths changes with it.")
    free = psutil.virtual_memory().available
    peak = max(plan.memory.total for plan in planned)
    if setup.device.type == "cpu" and peak > free:
        said.append(f"The peak of {ByteSize(peak)} is more than the {ByteSize(free)} of memory that is free.")
    return said


def adapts_below_what_trains(phase: Phase) -> bool:
    """Whether a boundary would go through adapters that train."""
    lowest = phase.path[0]
    return lowest in phase.adapts and len(phase.trains | phase.adapts) > 1


def phases_by_boundary(planned: Iterable[PhasePlan]) -> list[Phase]:
    """The phases, those that follow one another over the same boundary as one."""
    phases: list[Phase] = []
    for plan in planned:
        if plan.same_boundary:
            main, steps = phases[-1], plan.phase.steps
            together = None if main.steps is None or steps is None else main.steps + steps
            phases[-1] = evolve(main, epochs=main.epochs + plan.phase.epochs, steps=together)
        else:
            phases.append(plan.phase)
    return phases


def unseen(bands: Sequence[tuple[float, float]]) -> list[str]:
    """What to say of bands that don't cover (0, 1]."""
    if covered(bands) >= 0.995:
        return []
    seen = ", ".join(dict.fromkeys(map(band_text, bands)))
    return [f"Training sees the mask fractions {seen} and no others; the validation bound is over all of them."]


def band_text(band: tuple[float, float]) -> str:
    """``15-90 %``, or ``15 %`` for a band of one fraction."""
    low, high = (f"{100 * fraction:.3g}" for fraction in band)
    return f"{low} %" if low == high else f"{low}-{high} %"


def covered(bands: Iterable[tuple[float, float]]) -> float:
    """The share of (0, 1] that lies in one of the bands."""
    share, reached = 0.0, 0.0
    for low, high in sorted((min(band), max(band)) for band in bands):
        share += max(0.0, high - max(low, reached))
        reached = max(reached, high)
    return share


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
            "Set cache_backend.capacity, fewer training.masks_per_sample, or a shorter data.seq_len."
        )


def check_same_plan(plan: Plan, directory: RunDirectory) -> None:
    """Refuse to go on with a run whose plan isn't what its configuration comes to now.

    Raises:
        UsageError: the corpus, the tokenizer or a plugin is another than when it began.
        StackwiseError: its plan is damaged.
    """

    def essence(values: dict[str, Any]) -> dict[str, Any]:
        costs = ("memory", "disk", "flops")
        phases = [{key: value for key, value in phase.items() if key not in costs} for phase in values["phases"]]
        return {**values, "phases": phases, "notes": []}

    now = json.loads(json.dumps(essence(plan.to_json())))
    if now != essence(directory.read_json(PLAN)):
        raise UsageError(
            f"{directory.path} can't go on: its configuration comes to another plan now than when it began. Was the "
            "corpus, the tokenizer or a plugin changed?"
        )
