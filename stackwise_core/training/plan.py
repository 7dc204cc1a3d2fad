"""The plan of a run: its phases, checked, and what each will cost, before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from attrs import asdict, evolve, frozen

from stackwise_core.config.model import TrainingConfig
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.options import ByteSize
from stackwise_core.training.order import Order, chunk_size
from stackwise_core.training.setup import Setup

# Measured with tests/benchmarks/plan_memory.py on a CPU; docs/benchmarks/plan_memory.md has the table.
FIRST_STEP = 120_000_000
"""Bytes that a process's first optimizer step adds once, whatever the model: libraries, thread pools, kernels."""
ALLOCATOR = 1.6
"""Peak resident bytes for each byte of activations: the allocator keeps freed tensors whose size doesn't recur."""


@frozen
class Memory:
    """Estimated peak memory of a phase, in bytes."""

    process: int
    """What this process holds already (Python, torch, the libraries behind it) and its first step will load."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of the larger of a training step and a chunk on its way through the trunk."""
    boundaries: int
    """Held in memory: a window's without a cache, all of them with one in memory."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@frozen
class PhasePlan:
    """A phase, and what it costs."""

    phase: Phase
    steps: int
    tokens: int
    """Tokens that training steps pass, in all."""
    trainable_parameters: int
    frozen_parameters: int
    band: tuple[float, float]
    """Mask fractions at the two ends of its progress."""
    memory: Memory
    disk: int
    """Most bytes of boundaries on disk, the one below included."""
    made_from_below: bool
    """Whether its boundaries are made from those of the phase before."""
    flops: float
    """Floating-point operations of training steps and boundaries."""


def _json_value(instance: object, attribute: object, value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


@frozen
class Plan:
    """The phases of a run in order."""

    spec: RackSpec
    phases: tuple[PhasePlan, ...]
    notes: tuple[str, ...]
    """What a user should know before starting."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "rack": {**asdict(self.spec), "parameters": self.spec.parameters},
            "notes": list(self.notes),
            "phases": [
                {
                    **asdict(planned.phase, value_serializer=_json_value),
                    "entry": planned.phase.entry,
                    "steps": planned.steps,
                    "tokens": planned.tokens,
                    "trainable_parameters": planned.trainable_parameters,
                    "frozen_parameters": planned.frozen_parameters,
                    "band": list(planned.band),
                    "memory": {**asdict(planned.memory), "total": planned.memory.total},
                    "disk": planned.disk,
                    "flops": planned.flops,
                }
                for planned in self.phases
            ],
        }


def sample_order(setup: Setup) -> Order:
    """The order in which the training split is visited."""
    training, data = setup.config.training, setup.config.data
    return Order(
        samples=len(setup.corpus.train),
        seq_len=data.seq_len,
        window=training.window,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation,
        seed=setup.config.run.seed,
    )


def cache_layout(setup: Setup) -> Layout:
    """The shape of a stored boundary; without a cache, of one held in a window."""
    cache = setup.implementations.cache
    dtype = "fp32" if cache is None else cache.options.dtype
    return Layout(tokens=setup.config.data.seq_len, d_model=setup.spec.d_model, dtype=dtype)


def make_plan(setup: Setup) -> Plan:
    """Plan a run and price each phase.

    Raises:
        UsageError: the mode can't plan this rack, or a phase contradicts the objective.
        StackwiseError: the mode is a plugin whose plan makes no sense.
    """
    training = setup.config.training
    phases = setup.implementations.mode.plan(setup.spec, training)
    check_phases(phases, setup.spec, setup.config.trainer_mode.use)
    planned: list[PhasePlan] = []
    below: Phase | None = None
    for phase in phases:
        settled = settle_weighting(phase, setup.implementations.schedule, training)
        planned.append(price(settled, below, setup))
        below = settled
    return Plan(setup.spec, tuple(planned), tuple(notes(planned, setup)))


def check_phases(phases: list[Phase], spec: RackSpec, mode: str) -> None:
    """Refuse a plan that the engine can't execute; the fault is the trainer mode's."""

    def wrong(phase: Phase, what: str) -> StackwiseError:
        return StackwiseError(f'trainer mode "{mode}": phase "{phase.name}" {what}')

    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise StackwiseError(f'trainer mode "{mode}": plan() gave no list of phases')
    for phase in phases:
        if not phase.path or len(set(phase.path)) < len(phase.path) or not set(phase.path) <= set(range(spec.stacks)):
            raise wrong(phase, f"has the path {phase.path} in a rack of {spec.stacks} stacks")
        if not phase.trains | phase.adapts <= set(phase.path):
            raise wrong(phase, "trains a stack that isn't in its path")
        if not (phase.trains or phase.adapts or phase.embedding or phase.head):
            raise wrong(phase, "trains nothing")
        if phase.head and not phase.embedding and spec.tie_embeddings:
            raise wrong(phase, "trains the head, which is the embedding's transpose, over a frozen embedding")
        if phase.adapts:
            raise wrong(phase, "adapts stacks, and this version has no adapters")
        if phase.epochs < 1 or phase.masks_per_sample < 1 or (phase.steps is not None and phase.steps < 1):
            raise wrong(phase, "has no budget: epochs, steps and masks_per_sample must be 1 or more")
        if not 0 <= phase.progress[0] <= phase.progress[1] <= 1:
            raise wrong(phase, f"has the progress {phase.progress}, outside of [0, 1]")


def settle_weighting(phase: Phase, schedule: MaskSchedule, training: TrainingConfig) -> Phase:
    """Fill in the weighting that was left open, and refuse one under which the loss means nothing."""
    check_schedule(phase, schedule)
    low, high = fractions(phase, schedule)
    if max(low, high) == 0:
        raise UsageError(
            f'phase "{phase.name}" has the mask fraction 0, and so nothing to predict. '
            "Raise mask_schedule.min_fraction."
        )
    one_fraction = low == high
    places_its_own = type(schedule).place is not MaskSchedule.place
    weighting = phase.weighting or training.weighting or ("mean" if one_fraction or places_its_own else "nelbo")
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


def fractions(phase: Phase, schedule: MaskSchedule) -> tuple[float, float]:
    """Mask fractions at the ends of a phase's progress."""
    low, high = schedule.fraction(torch.tensor(phase.progress, dtype=torch.float64)).tolist()
    return low, high


def phase_steps(phase: Phase, order: Order) -> int:
    """Optimizer steps of a phase."""
    return phase.steps or sum(order.steps_per_epoch(epoch) for epoch in range(phase.epochs))


def phase_epochs(phase: Phase, order: Order) -> int:
    """Passes over the training split that a phase begins."""
    return -(-phase.steps // order.steps_per_epoch()) if phase.steps else phase.epochs


def price(phase: Phase, below: Phase | None, setup: Setup) -> PhasePlan:
    """Estimate what a phase costs."""
    spec, training, implementations = setup.spec, setup.config.training, setup.implementations
    order, layout = sample_order(setup), cache_layout(setup)
    steps = phase_steps(phase, order)
    tokens = round(steps / order.steps_per_epoch() * len(setup.corpus.train)) * spec.seq_len
    low, high = fractions(phase, implementations.schedule)
    trainable = sum(spec.stack_parameters(stack) for stack in phase.trains)
    trainable += spec.embedding_parameters if phase.embedding else 0
    trainable += spec.head_parameters if phase.head else 0
    resident = sum(spec.stack_parameters(stack) for stack in phase.path)
    resident += spec.embedding_parameters + spec.head_parameters

    frozen_weights = sum(spec.stack_parameters(stack) for stack in set(phase.path) - phase.trains)
    weights = 4 * (resident - frozen_weights) + round(implementations.trunk.bytes_per_weight * frozen_weights)
    stored = boundary_bytes(phase, below, setup)
    capacity = None if implementations.cache is None else implementations.cache.options.capacity
    stored = stored if capacity is None else min(stored, capacity)
    durable = implementations.cache is not None and implementations.cache.durable
    window = min(training.window, len(setup.corpus.train)) * layout.bytes_per_entry if phase.frozen_prefix else 0
    boundaries = window if implementations.cache is None else (0 if durable else stored)
    memory = Memory(
        process=psutil.Process().memory_info().rss + FIRST_STEP if setup.device.type == "cpu" else 0,
        weights=weights,
        gradients=4 * trainable,
        optimizer=8 * trainable,
        activations=max(
            step_activations(phase, spec, training.batch_size * spec.seq_len, (low + high) / 2, setup),
            chunk_activations(phase, spec),
        ),
        boundaries=boundaries,
    )
    return PhasePlan(
        phase=phase,
        steps=steps,
        tokens=tokens,
        trainable_parameters=trainable,
        frozen_parameters=resident - trainable,
        band=(low, high),
        memory=memory,
        disk=stored if durable else 0,
        made_from_below=made_from_below(phase, below),
        flops=phase_flops(phase, below, spec, tokens, (low + high) / 2, setup),
    )


def distinct_draws(phase: Phase, order: Order) -> int:
    """How many draws of each sample a phase trains on."""
    epochs = phase_epochs(phase, order)
    return min(epochs, phase.masks_per_sample) if phase.masks == "fixed" else epochs


def made_from_below(phase: Phase, below: Phase | None) -> bool:
    """Whether a phase's boundaries can be made from those of the phase before: a shorter trunk, under equal draws."""
    if below is None or not below.frozen_prefix or not phase.frozen_prefix:
        return False
    draws = [(p.progress, p.masks, p.masks_per_sample, p.weighting) for p in (phase, below)]
    return draws[0] == draws[1] and phase.frozen_prefix[: len(below.frozen_prefix)] == below.frozen_prefix


def boundary_bytes(phase: Phase, below: Phase | None, setup: Setup) -> int:
    """Bytes of a phase's boundaries, and of those below that they are made from, if nothing is evicted."""
    if not phase.frozen_prefix:
        return 0
    one = distinct_draws(phase, sample_order(setup)) * len(setup.corpus.train) * cache_layout(setup).bytes_per_entry
    return 2 * one if made_from_below(phase, below) else one


def step_activations(phase: Phase, spec: RackSpec, tokens: int, masked_share: float, setup: Setup) -> int:
    """Bytes that one forward and backward pass holds at its peak.

    A token and block keeps for the backward pass in fp32 two tensors of each norm, q, k, v and attention's output, and
    in the format that it computes in both norms' results, the output projection's input, and four tensors of SwiGLU.
    The head holds logits, their softmax and their gradient, over the masked tokens.
    """
    kv = 2 * spec.n_kv_heads * spec.head_dim
    if setup.implementations.active.bytes_per_weight < 4:
        a_token_and_block = 4 * (6 * spec.d_model + kv) + 2 * (3 * spec.d_model + 4 * spec.d_ff)
    else:  # the projection's input is attention's output
        a_token_and_block = 4 * (8 * spec.d_model + kv + 4 * spec.d_ff)
    live_blocks = sum(spec.blocks[stack] for stack in phase.live_path)
    logits = round(masked_share * tokens) * spec.vocab_size * 4 * 3
    # One block's worth more for what its backward pass makes and frees.
    return round(ALLOCATOR * (live_blocks + 1) * a_token_and_block * tokens) + logits


def chunk_activations(phase: Phase, spec: RackSpec) -> int:
    """Bytes that a chunk holds at its peak on its way through the trunk."""
    if not phase.frozen_prefix:
        return 0
    return chunk_size(spec.seq_len) * spec.seq_len * 4 * (3 * spec.d_ff + 2 * spec.d_model)


def phase_flops(
    phase: Phase, below: Phase | None, spec: RackSpec, tokens: int, masked_share: float, setup: Setup
) -> float:
    """Floating-point operations: a backward pass costs a forward for the input and one more for weights that train."""
    total = 0.0
    for stack in phase.live_path:
        total += spec.stack_flops(stack) * tokens * (3 if stack in phase.trains else 2)
    head_passes = 3 if phase.head or phase.embedding else 2
    total += 2 * spec.d_model * spec.vocab_size * tokens * masked_share * head_passes
    split_tokens = len(setup.corpus.train) * spec.seq_len
    order, cached = sample_order(setup), setup.implementations.cache is not None
    computed = split_tokens * (distinct_draws(phase, order) if cached else phase_epochs(phase, order))
    done = len(below.frozen_prefix) if cached and below is not None and made_from_below(phase, below) else 0
    trunk = phase.frozen_prefix[done:]
    return total + sum(spec.stack_flops(stack) for stack in trunk) * computed


def notes(planned: list[PhasePlan], setup: Setup) -> list[str]:
    """What a user should know before starting."""
    training, cache = setup.config.training, setup.implementations.cache
    with_trunk = [plan for plan in planned if plan.phase.frozen_prefix]
    said = []
    if with_trunk and training.masks == "fixed" and training.masks_per_sample == 1:
        said.append(
            "masks_per_sample = 1: a stack overfits to the one mask of each sample; 4 do nearly as well as fresh ones."
        )
    if with_trunk and cache is not None:
        order = sample_order(setup)
        epochs, draws = (max(f(plan.phase, order) for plan in with_trunk) for f in (phase_epochs, distinct_draws))
        if epochs <= draws:
            trained_on = f"Each boundary is trained on once (epochs a stack: {epochs}, draws a sample: {draws})"
            if any(plan.made_from_below for plan in planned):
                said.append(f"{trained_on}, so the cache saves only the stacks below the last one of the trunk.")
            else:
                said.append(f"{trained_on}, and phases share no draws, so the cache saves nothing.")
        if cache.options.capacity is not None:
            below = [None, *(plan.phase for plan in planned)]
            needed = max(boundary_bytes(plan.phase, lower, setup) for plan, lower in zip(planned, below, strict=False))
            window = min(training.window, len(setup.corpus.train)) * cache_layout(setup).bytes_per_entry
            if 2 * window > cache.options.capacity:
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
    if covered([plan.band for plan in planned]) < 0.995:
        seen = ", ".join(dict.fromkeys(band_text(plan.band) for plan in planned))
        said.append(f"Training sees the mask fractions {seen} and no others; the validation bound is over all of them.")
    if any(plan.phase.head for plan in planned[1:]):
        said.append("The head goes on training: what it reads at shallower depths changes with it.")
    free = psutil.virtual_memory().available
    peak = max(plan.memory.total for plan in planned)
    if setup.device.type == "cpu" and peak > free:
        said.append(f"The peak of {ByteSize(peak)} is more than the {ByteSize(free)} of memory that is free.")
    return said


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
