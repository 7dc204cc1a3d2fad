"""Phases that training steps are measured in, and the ways in which each is taken."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from stackwise_core.config.model import RunConfig
from stackwise_core.engine.loop.engine import Engine
from tests.benchmarks.cache import Tensors, alone, alternating, engine_for
from tests.benchmarks.steps.by_engine import Clock, EngineSteps, wait_for
from tests.benchmarks.steps.by_hand import BLOCK, Batch, HandWritten, Widths
from tests.benchmarks.steps.by_trainer import TrainerSteps, eurobert
from tests.benchmarks.steps.page import DOCUMENTS, ENGINE, HAND, RECOMPUTED, TENSORS, TRAINER
from tests.benchmarks.steps.profiles import Profile, profile_of
from tests.benchmarks.steps.shapes import Shape, write_texts

FIRST_STEPS = 4
"""Steps whose losses and norms are compared; later ones differ the more, the longer bf16 has rounded them otherwise."""
LOSSES_AGREE, NORMS_AGREE = 2e-3, 1e-2
"""Largest differences of losses and of gradients' norms, relative."""


class NotTheSame(Exception):
    """Ways of a case that don't do the same work."""


@frozen
class Options:
    """Options of all measurements."""

    device: str
    rounds: int
    compiles: bool = False
    """Whether steps are measured with compiled blocks, too."""
    clock: Clock = time.perf_counter
    """Seconds of the clock, or of the processor where others use the machine, too."""


@frozen
class Case:
    """A phase of a shape's run."""

    name: str
    phase: int
    settings: tuple[str, ...]
    caches: tuple[str | None, ...] = (None,)
    """Where its boundary is kept, for each of the engine's ways."""
    recomputes: bool = False
    """Whether the loop by hand keeps only what enters a stack for its backward pass."""
    window: bool = False
    """Whether the trunk is run for windows of the steps that don't count."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the rack trains."""
        return self.name == "end to end"


END_TO_END = ("trainer_mode={ use = 'end_to_end' }", "training.masks=resampled", "training.residency=memory")
CASES = {
    each.name: each
    for each in (
        Case("end to end", 0, END_TO_END),
        Case("first stack", 0, alone("training.masks=resampled", "training.residency=memory")),
        Case("trunk recomputed", -1, alone("training.masks=resampled", "training.residency=memory"), window=True),
        Case("input cached", -1, alone("training.residency=memory"), ("memory", "disk")),
        Case(
            "streamed",
            0,
            (*END_TO_END[:-1], "training.residency=stream"),
            recomputes=True,
        ),
    )
}


@frozen
class Measured:
    """A case, as it was found."""

    seconds: Mapping[str, Sequence[float]]
    """Seconds of a step by way, in each round."""
    tokens: int
    """Tokens of a step."""
    flops: float
    """Floating-point operations of training a token, by the plan."""
    agree: Mapping[str, Sequence[float]]
    """Largest relative differences of losses and norms against the loop by hand, by way."""
    waited: float
    """Share of the engine's time in which it waited for draws and boundaries."""
    profiles: Mapping[str, Profile]


class Ways:
    """The ways of a case, made when they are first asked for."""

    def __init__(self, case: Case, shape: Shape, folder: Path, options: Options) -> None:
        self.case, self.shape, self._folder, self._options = case, shape, folder, options
        folder.mkdir(parents=True)
        self._whole, self._parts = write_texts(shape, folder)
        self._count = 0

    def engine(self, cache: str | None = None, *more: str, text: Path | None = None) -> Engine:
        """Return an engine of the case's run."""
        self._count += 1
        settings = [*self.shape.settings(text or self._whole, self._options.device), *self.case.settings, *more]
        if self.case.window:
            settings.append(f"training.window={self.shape.warm_up * self.shape.batch}")
        if self.case.name == "streamed":
            settings.append(f"training.offload={'disk' if self._options.device == 'cpu' else 'memory'}")
        if cache is not None:
            settings.append(f"cache_backend={{ use = '{cache}' }}")
        return engine_for(self._folder / str(self._count), *settings, cached=cache is not None)

    def steps(self, engine: Engine, boundary_as: Callable[..., Any] | None = None) -> EngineSteps:
        """Return the steps of an engine's phase, whose stacks are placed."""
        return EngineSteps.of(
            engine, self.case.phase, self.shape.warm_up, self.shape.steps, self._options.clock, boundary_as
        )

    def engines(self) -> Iterator[tuple[str, Callable[[], EngineSteps]]]:
        """Yield the engine's ways that are to agree with the loop by hand, each to be made."""
        for cache in self.case.caches:
            name = ENGINE if cache is None else f"{ENGINE}, {cache} tier"
            yield name, lambda cache=cache: self.steps(self.engine(cache))
        if self.case.caches != (None,):
            yield TENSORS, lambda: self.steps(self.engine("memory"), Tensors)
        if self._options.compiles and hasattr(RunConfig(), "compile"):
            yield f"{ENGINE}, compiled", lambda: self.steps(self.engine(self.case.caches[0], "run.compile=true"))

    def documents(self) -> EngineSteps:
        """Return the engine's steps on rows of several documents."""
        return self.steps(self.engine(text=self._parts))


def widths_of(engine: Engine) -> Widths:
    """Return the numbers that the loop by hand takes of a run."""
    training, spec, setup = engine.setup.config.training, engine.setup.spec, engine.setup
    return Widths(
        heads=spec.n_heads,
        kv_heads=spec.n_kv_heads,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        mask_id=setup.tokenizer.mask_id,
        dtype=torch.bfloat16 if setup.config.precision.active.use == "bf16" else torch.float32,
        lr=training.block_lr,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
    )


def by_hand(
    steps: EngineSteps, *, recomputes: bool, compiled: bool = False, from_tokens: bool | None = None
) -> HandWritten:
    """Return the loop by hand of a phase, with copies of the weights that it begins with.

    Args:
        from_tokens: whether its frozen trunk runs in each step; None: unless its boundaries are stored.
    """
    placement, phase, engine = steps.engine.placement, steps.planned.phase, steps.engine

    def blocks(index: int) -> list[dict[str, Tensor]]:
        with placement.visiting(index):
            tensors = placement.stack(index).state_dict()
            count = engine.setup.spec.blocks[index]
            return [{name: tensors[f"layers.{each}.{name}"].clone() for name in BLOCK} for each in range(count)]

    with placement.visiting(phase.path[-1]):
        norm = placement.stack(phase.path[-1]).norm.weight.clone()
    if from_tokens is None:
        from_tokens = steps.boundary is None or not steps.boundary.is_stored
    made = HandWritten(
        widths_of(engine),
        placement.ends(phase.path[0]).embed_tokens.weight,
        [block for index in phase.frozen_prefix for block in blocks(index)] if from_tokens else (),
        [blocks(index) for index in phase.live_path],
        norm,
        embedding_trains=phase.embedding,
        recomputes=recomputes,
        compiled=compiled,
    )
    trained = sum(each.numel() for each in made.parameters)
    assert trained == steps.planned.trainable_parameters, (trained, steps.planned.trainable_parameters)
    return made


def batches_of(steps: EngineSteps, count: int, *, with_hidden: bool) -> list[Batch]:
    """Draw a phase's first batches beforehand.

    Args:
        with_hidden: whether what enters the lowest stack that trains is there, too.
    """
    engine, planned = steps.engine, steps.planned
    drawer, objective, number = engine.training_drawer(planned), engine.objective(planned), planned.phase.draw_number(0)
    windows = engine.order.epoch(0)
    pinned = engine.setup.device.type == "cuda"
    made = list[Batch]()
    for window in windows:
        for (samples,) in window.steps[: count - len(made)]:
            draws = drawer.draw(samples, number)
            assert (draws.segments == 1).all(), "a row has more than one document"
            predicted = objective.predicted(draws)
            weights = (objective.weights(predicted) / objective.normaliser([predicted])).float()
            tensors = (draws.inputs, draws.masked, draws.targets, weights)
            hidden = None
            if with_hidden:
                assert steps.boundary is not None
                for _ in steps.boundary.fill_window(window.chunks, number) if len(made) == 0 else ():
                    pass
                hidden = steps.boundary.read(draws, number).detach().clone()
            made.append(Batch(*(each.pin_memory() if pinned else each for each in tensors), hidden=hidden))
    assert len(made) == count, "an epoch has too few steps"
    return made


def seconds_by_hand(
    made: HandWritten,
    batches: Sequence[Batch],
    warm_up: int,
    clock: Clock,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> float:
    """Take the steps of some batches, and return the seconds of one that counts.

    Args:
        begin: called when those that don't count are over.
        end: called when all are.
    """
    for batch in batches[:warm_up]:
        made.step(batch)
    begin()
    wait_for(made.device)
    began = clock()
    for batch in batches[warm_up:]:
        made.step(batch)
    wait_for(made.device)
    seconds = clock() - began
    end()
    return seconds / (len(batches) - warm_up)


def differences(told: Mapping[int, tuple[float, float]], found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the largest relative differences of losses and of norms, of the first steps that the engine told of."""
    pairs = [(one, found[step - 1]) for step, one in told.items() if step <= FIRST_STEPS]
    assert pairs, "the engine told of no step"
    loss, norm = (max(abs(one[each] / other[each] - 1) for one, other in pairs) for each in (0, 1))
    return loss, norm


def measure(case: Case, shape: Shape, folder: Path, options: Options) -> Measured:
    """Measure the steps of a case in all ways, in rounds in which each takes its turn.

    Raises:
        NotTheSame: the ways don't compute the same.
    """
    ways = Ways(case, shape, folder, options)
    meter = Meter(case, shape, options)
    for name, make in ways.engines():
        steps = make()
        if meter.hand is None:
            meter.draw(steps)
        meter.engine(name, steps)
        if shape.one_at_a_time:
            meter.take_turns()
        del steps
    if case.is_whole:
        meter.timed[DOCUMENTS] = ways.documents().seconds
        meter.trainer()
    meter.by_hand()
    meter.take_turns()
    return meter.measured()


@define
class Meter:
    """Measurements of a case as they are made."""

    case: Case
    shape: Shape
    options: Options
    hand: HandWritten | None = None
    timed: dict[str, Callable[[], float]] = field(factory=dict)
    """Ways that are in memory: each takes the steps of a round, and returns the seconds of one."""
    _first: dict[str, Any] = field(factory=dict)
    _compiled: HandWritten | None = None
    _recomputing: HandWritten | None = None
    """The loop by hand that runs the trunk, beside one whose input is there."""
    _batches: list[Batch] = field(factory=list)
    _told: dict[str, dict[int, tuple[float, float]]] = field(factory=dict)
    _seconds: dict[str, list[float]] = field(factory=dict)
    _agree: dict[str, tuple[float, float]] = field(factory=dict)
    _profiles: dict[str, Profile] = field(factory=dict)
    _flops: float = 0.0
    _waited: float = 0.0
    _model: Any = None

    def draw(self, steps: EngineSteps) -> None:
        """Draw the batches, and copy the weights that all ways begin with."""
        case, shape = self.case, self.shape
        if case.window:
            sizes = [len(window.steps) for window in steps.engine.order.epoch(0)[:3]]
            assert sizes == [shape.warm_up] * 3, f"windows have {sizes} steps, and {shape.warm_up} don't count"
        self._flops = steps.flops_a_token
        self.hand = by_hand(steps, recomputes=case.recomputes)
        if self.options.compiles:
            self._compiled = by_hand(steps, recomputes=case.recomputes, compiled=True)
        if case.caches != (None,) and shape.trunk is None:
            self._recomputing = by_hand(steps, recomputes=case.recomputes, from_tokens=True)
        self._batches = batches_of(steps, shape.taken, with_hidden=case.caches != (None,))
        if case.is_whole:
            self._model = eurobert(steps.engine.setup.spec, hub_weights(steps), steps.engine.setup.device)

    def engine(self, name: str, steps: EngineSteps) -> None:
        """Take a way of the engine's in."""
        self._told[name] = steps.losses()
        self.timed[name] = steps.seconds
        if not self._waited:
            self._waited = steps.take(lambda: None, lambda: None)
        if not self._profiles:
            self._profiles[name] = profile_of(steps.take, self.shape.steps, steps.engine.setup.device)

    def trainer(self) -> None:
        """Take Trainer in."""
        hand = self.hand
        assert hand is not None
        made = TrainerSteps(
            self._model, hand.widths, self._batches, self.shape.warm_up, self.shape.steps, self.options.clock
        )
        self._first[TRAINER] = made.first_loss()
        self.timed[TRAINER] = made.seconds

    def by_hand(self) -> None:
        """Take the loop by hand in, and compare what all ways compute with it."""
        hand, batches, warm_up, clock = self.hand, self._batches, self.shape.warm_up, self.options.clock
        assert hand is not None
        found = [tuple(map(float, hand.step(batch))) for batch in batches]
        self._agree = {name: differences(told, found) for name, told in self._told.items()}
        if TRAINER in self._first:
            self._agree[TRAINER] = abs(self._first[TRAINER] / found[0][0] - 1), 0.0
        print("  differences of loss and norm:", self._agree, flush=True)
        bad = {name: each for name, each in self._agree.items() if each[0] > LOSSES_AGREE or each[1] > NORMS_AGREE}
        if bad:
            raise NotTheSame(f"losses and norms differ from those by hand by {bad}")
        self.timed[HAND] = lambda: seconds_by_hand(hand, batches, warm_up, clock)
        if self._compiled is not None:
            compiled = self._compiled
            self.timed[f"{HAND}, compiled"] = lambda: seconds_by_hand(compiled, batches, warm_up, clock)
        if self._recomputing is not None:
            recomputing, from_tokens = self._recomputing, [each._replace(hidden=None) for each in batches]
            self.timed[RECOMPUTED] = lambda: seconds_by_hand(recomputing, from_tokens, warm_up, clock)

        def take(begin: Callable[[], None], end: Callable[[], None]) -> None:
            seconds_by_hand(hand, batches, warm_up, clock, begin, end)

        self._profiles[HAND] = profile_of(take, self.shape.steps, hand.device)

    def take_turns(self) -> None:
        """Time the ways that are in memory, and let them go."""
        self._seconds |= alternating(self.timed, self.options.rounds)
        self.timed.clear()
        release(self.options.device)

    def measured(self) -> Measured:
        """Return all that was measured."""
        return Measured(self._seconds, self.shape.tokens, self._flops, self._agree, self._waited, self._profiles)


def hub_weights(steps: EngineSteps) -> dict[str, Tensor]:
    """Return the weights of a whole rack by the names of ``EuroBertForMaskedLM``."""
    placement, path = steps.engine.placement, steps.planned.phase.path
    weights, count = {"model.embed_tokens.weight": placement.ends(path[0]).embed_tokens.weight}, 0
    for index in path:
        stack = placement.stack(index)
        for layer in stack.layers:
            weights |= {f"model.layers.{count}.{name}": each for name, each in layer.state_dict().items()}
            count += 1
    return weights | {"model.norm.weight": placement.stack(path[-1]).norm.weight}


def release(device: str) -> None:
    """Give memory back that nobody holds."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
