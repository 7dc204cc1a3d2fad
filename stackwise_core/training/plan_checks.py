"""Whether a plan makes sense: its phases, routes, objective and schedule, before any of it is priced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from attrs import evolve

from stackwise_core.config.model import Config, TrainingConfig
from stackwise_core.data.noise import Noise
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.inference.evaluate import BandRoute
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import Route


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
