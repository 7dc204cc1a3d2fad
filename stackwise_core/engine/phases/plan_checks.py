"""Checks of a plan: its phases, routes, objective and schedule, before any of it is priced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import numpy as np
from attrs import evolve, fields

from stackwise_core.config.model import Config, TrainingConfig
from stackwise_core.engine.draws.draws import Stream, generator
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.draws.schedule_checks import check_schedule, placed
from stackwise_core.engine.draws.sequences import Split
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.component import ContractError, origin
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.objective import Objective
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute, Route
from stackwise_core.words import shown


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


def check_partition(spec: RackSpec, mode: str) -> None:
    """Refuse what a trainer mode (its ``origin``) made of the rack, where that is no rack.

    Raises:
        ContractError: it isn't.
    """
    if not isinstance(spec, RackSpec):
        raise ContractError(mode, f"partition() gave {type(spec).__name__}, expected a RackSpec")
    if not spec.blocks or not all(type(blocks) is int and blocks > 0 for blocks in spec.blocks):
        raise ContractError(mode, f"partition() gave stacks of {spec.blocks} blocks, expected one or more in each")


def resolve_routes(routes: list[Route], spec: RackSpec, noise: Noise, mode: str) -> tuple[BandRoute, ...]:
    """Return the routes in the order of their mask fractions, which they divide (0, 1] into.

    Args:
        mode: the trainer mode's ``origin``.

    Raises:
        ContractError: they don't; the fault is the trainer mode's.
        UsageError: discrete time steps lie across them.
    """
    if not isinstance(routes, list | tuple) or not all(isinstance(route, Route) for route in routes):
        raise ContractError(mode, "routes() gave no list of routes")
    ordered = sorted(routes, key=lambda route: route.progress)
    ends = [end for route in ordered for end in route.progress]
    if not ends or ends[0] != 0 or ends[-1] != 1 or ends[1:-1:2] != ends[2::2]:
        raise ContractError(mode, f"routes() gave the progress {ends}, expected all of [0, 1] without overlap")
    if not all(route.path and set(route.path) <= set(range(spec.stacks)) for route in ordered):
        raise ContractError(mode, f"routes() gave a stack that isn't there, expected 0 to {spec.stacks - 1}")
    check_steps_divide([edge for route in ordered for edge in route.progress], noise)
    low, high = noise.band((0.0, 1.0))
    # The first and the last take what the schedule leaves out of (0, 1].
    first, last = (0.0, 1.0) if low <= high else (1.0, 0.0)
    edges = [first, *(noise.band(route.progress)[1] for route in ordered[:-1]), last]
    resolved = [
        BandRoute(route.path, (min(edge, following), max(edge, following)))
        for route, edge, following in zip(ordered, edges, edges[1:], strict=False)
    ]
    if len(ordered) > 1 and any(low == high for low, high in (noise.band(route.progress) for route in ordered)):
        raise UsageError(
            f"{mode} gives each stack a band of mask fractions, and the mask schedule has no width for all of them. "
            "Take a schedule that rises all the way, such as linear from 0 to 1."
        )
    return tuple(sorted(resolved, key=lambda route: route.band))


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
    """Refuse a plan that the engine can't execute; the fault is the trainer mode's.

    Args:
        mode: its ``origin``.
    """

    def wrong(phase: Phase, what: str) -> ContractError:
        return ContractError(mode, f'phase "{phase.name}" of its plan() {what}')

    if not isinstance(phases, list | tuple) or not all(isinstance(phase, Phase) for phase in phases):
        raise ContractError(mode, "plan() gave no list of phases")
    if not phases:
        raise ContractError(mode, "plan() gave no phases, expected one or more")
    there, names = set(spec.given), set[str]()
    for phase in phases:
        if phase.name in names:
            raise wrong(phase, "has the name of another phase, and measurements go by name")
        names.add(phase.name)
        for field in fields(Phase):
            value, choices = getattr(phase, field.name), _choices(field.type)
            if choices and value not in choices:
                raise wrong(phase, f"has {field.name} = {value!r}, expected {' or '.join(map(repr, choices))}")
        if not phase.path or len(set(phase.path)) < len(phase.path) or not set(phase.path) <= set(range(spec.stacks)):
            expected = f"expected stacks of 0 to {spec.stacks - 1}, each at most once"
            raise wrong(phase, f"has the path {phase.path}, {expected}")
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
        if not isinstance(phase.least, int | float) or not 0 <= phase.least <= 1:
            raise wrong(phase, f"has the least share {shown(phase.least)} of its steps, expected one in [0, 1]")
        if phase.ends == "passing_on" and phase is phases[-1]:
            raise wrong(phase, "is the last one, and passes what is left of its budget on")
        if spec.ends == "per_stack" and (phase.embedding or phase.head) and len(phase.path) > 1:
            raise wrong(phase, "passes several stacks, each of which has an embedding and a head of its own")
        for stack in phase.path if phase.start == "copy" else ():
            copied = phase.copied(stack)
            if stack in there:
                continue
            if copied is None or copied not in there:
                of = "nothing" if copied is None else f"stack {copied}, which wasn't trained before"
                raise wrong(phase, f"starts stack {stack} as a copy of {of}")
            if spec.blocks[stack] != spec.blocks[copied]:
                raise UsageError(
                    f'phase "{phase.name}" starts stack {stack} (blocks: {spec.blocks[stack]}) as a copy of stack '
                    f"{copied}, which has another number of blocks ({spec.blocks[copied]}). Give them as many, or use "
                    'trainer_mode.start = "random".'
                )
        there |= set(phase.path)
        if not 0 <= phase.progress[0] <= phase.progress[1] <= 1:
            raise wrong(phase, f"has the progress {phase.progress}, outside of [0, 1]")


def check_patience(phases: Iterable[Phase], training: TrainingConfig) -> None:
    """Refuse phases that end at a plateau where nothing says what one is."""
    passing = next((phase.name for phase in phases if phase.ends == "passing_on"), None)
    if passing is not None and training.patience is None:
        raise UsageError(
            f'training.patience: phase "{passing}" ends when its loss on held-out text stops falling, and nothing says '
            "after how many validations. Set training.patience, and evaluation.every."
        )


def _choices(annotation: Any) -> tuple[object, ...]:
    """Return the values that a field of literal words may have."""
    members = [annotation] if get_origin(annotation) is Literal else get_args(annotation)
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    return (*words, None) if words and type(None) in members else tuple(words)


def check_division(phases: Iterable[Phase], spec: RackSpec, training: TrainingConfig, mode: str) -> None:
    """Refuse a plan that draws from the whole schedule where each stack is to have a place in it.

    Args:
        mode: the trainer mode's ``origin``.
    """
    for phase in phases:
        low, high = phase.progress
        shared = low < high if training.noise_over == "depth" else spec.stacks > 1 and high - low == 1
        if shared:
            training.budget.only_over_time(f'phase "{phase.name}" of {mode}')


def resolve_objective(phase: Phase, noise: Noise, training: TrainingConfig, objective: Objective) -> Phase:
    """Fill in the weighting that was left open, and refuse one under which the loss means nothing."""
    if objective.options.causal:  # no masks, and so one draw a sample
        return evolve(phase, weighting="mean", masks="fixed", masks_per_sample=1)
    schedule, has = noise.schedule, objective.options.weightings
    check_schedule(schedule, phase.progress)
    low, high = noise.band(phase.progress)
    if max(low, high) == 0:
        raise UsageError(
            f'phase "{phase.name}" has the mask fraction 0, and so nothing to predict. '
            "Raise mask_schedule.min_fraction."
        )
    one_fraction = low == high
    places_its_own = type(schedule).place is not MaskSchedule.place
    allowed = [each for each in has if each == "mean" or not (one_fraction or places_its_own)]
    weighting = phase.weighting or training.weighting or (allowed or has)[0]
    if weighting not in has:
        raise UsageError(
            f'phase "{phase.name}" is planned with weighting = "{weighting}", which {origin(objective)} doesn\'t have. '
            "Use another trainer mode or another objective."
        )
    instead = 'Use "mean", or' if "mean" in has else "Use"
    if weighting == "nelbo" and one_fraction:
        raise UsageError(
            f'training.weighting = "nelbo": phase "{phase.name}" has the one mask fraction {low:g}, and so no band to '
            f"bound a likelihood over. {instead} a schedule whose fraction changes."
        )
    if weighting == "nelbo" and places_its_own:
        raise UsageError(
            'training.weighting = "nelbo" holds for independently masked tokens only, and this mask schedule places '
            f"them its own way. {instead} another schedule."
        )
    return evolve(phase, weighting=weighting)


def check_masks(noise: Noise, split: Split, seed: int, objective: Objective, tokenizer: Tokenizer) -> None:
    """Refuse a mask schedule or an objective whose masks aren't such; they are tried on the first sequence.

    Raises:
        ContractError: they aren't.
    """
    rows = split.rows(np.arange(1))
    for fraction in noise.band((0.0, 1.0)):
        rng = generator(seed, 0, Stream.TRAINING)
        mask = placed(noise.schedule, rows.tokens[0], rows.scorable[0], fraction, rng)
        masked = np.where(mask, tokenizer.mask_id, rows.tokens[0]).astype(np.int64)
        inputs, ids = masked.copy(), {"mask_id": tokenizer.mask_id, "vocab_size": tokenizer.vocab_size}
        objective.corrupt(inputs, rows.tokens[0], mask, **ids, rng=rng)
        if (inputs != masked)[~mask].any():
            raise ContractError(objective, "corrupt() changed a position that isn't masked")
        if not ((inputs >= 0) & (inputs < tokenizer.vocab_size)).all():
            raise ContractError(objective, f"corrupt() gave ids outside of 0 to {tokenizer.vocab_size - 1}")


def check_adapters(phases: Iterable[Phase], adapters: Mapping[str, Adapter], spec: RackSpec) -> None:
    """Refuse adapters without a weight to train.

    Args:
        adapters: by name.

    Raises:
        ContractError: a size isn't one, or a phase would have nothing that trains.
    """
    for phase in phases:
        sizes = {(stack, name): adapters[name].size(spec, stack) for stack, name in phase.adapters}
        for (stack, name), size in sizes.items():
            if type(size) is not int or size < 0:
                said = f"size() gave {size!r} for stack {stack}, expected a number of weights"
                raise ContractError(adapters[name], said)
        if sizes and not (sum(sizes.values()) or phase.trains or phase.embedding or phase.head):
            (stack, name), *_ = sizes
            said = f'size() gave no weights for stack {stack}, expected some that phase "{phase.name}" can train'
            raise ContractError(adapters[name], said)
