"""Setup of a plan or a run: the device, the implementations, the text as sequences, and the rack's shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from attrs import asdict, evolve, fields, frozen

from stackwise_core.config.model import Choice, Config
from stackwise_core.config.rack_shape import rack_shape
from stackwise_core.config.source_checkpoint import read_source
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.draws.sequences import Progress, TokenisedCorpus, tokenise
from stackwise_core.engine.phases.plan_checks import check_partition
from stackwise_core.engine.process.allocator import reuse_freed_memory
from stackwise_core.engine.process.memory import device_memory
from stackwise_core.engine.rack.compiled_blocks import missing_for_compiling
from stackwise_core.engine.rack.formats import Formats
from stackwise_core.engine.rack.forward import Forward
from stackwise_core.engine.rack.masters import Masters
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.stack_loader import StackLoader
from stackwise_core.engine.text.sources import find_sources
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer, load_tokenizer
from stackwise_core.engine.weights.planned_rack import PlannedRack
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.cache_backend import CacheBackend
from stackwise_core.interfaces.component import origin
from stackwise_core.interfaces.objective import Objective
from stackwise_core.interfaces.optimizer import Optimizer
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.tracker import Tracker
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.registry import Registry
from stackwise_core.system.machine import memory

OF_FREE = 0.9
"""The share of free memory that a run may take."""
WINDOW = 1024
"""Sequences of a window where there is room for them."""
CHUNK_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Most tokens of a chunk: as many as a device needs to be at its full speed. A GPU at 4096 waits for the host."""
CHUNK_ACTIVATIONS = 4 << 30
"""Most bytes of a larger chunk's activations on its way through the trunk: wide racks need fewer tokens."""


@frozen
class Implementations:
    """The chosen implementations of the hooks, made from their options; the mask schedule is in the noise."""

    formats: Formats
    cache: CacheBackend | None
    mode: TrainerMode
    optimizer: Optimizer
    objective: Objective
    trackers: tuple[Tracker, ...]


@frozen
class RackParts:
    """Everything that a trained rack needs besides its weights."""

    config: Config
    device: torch.device
    formats: Formats
    tokenizer: Tokenizer
    spec: RackSpec

    def forward(self, masters: Masters) -> Forward:
        """Return the rack as it begins, with nothing in memory but its ends."""
        reuse_freed_memory()
        loader = StackLoader(self.spec, self.formats, masters, self.config.run.seed, self.device)
        return Forward(Placement(loader, self.tokenizer.mask_id), self.window)

    @property
    def memory_budget(self) -> int:
        """Most bytes that a run may take of the device's memory: as it says, or of what is free now."""
        asked = self.config.training.memory_budget
        if asked is not None:
            return asked
        return round(OF_FREE * device_memory(self.device).free)

    @property
    def window(self) -> int:
        """Sequences that are shuffled together, and that pass the trunk together."""
        window = self.config.training.window
        assert window is not None  # set_up_parts has resolved it
        return window

    @property
    def chunk_tokens(self) -> int:
        """Tokens that pass the trunk at once."""
        tokens = self.config.training.chunk_tokens
        assert tokens is not None  # set_up_parts has resolved it
        return tokens


@frozen
class Parts(RackParts):
    """Everything built from the configuration except the corpus."""

    implementations: Implementations
    noise: Noise


@frozen
class Setup(Parts):
    """Everything built before the first phase is planned."""

    corpus: TokenisedCorpus
    source: Source | None
    """The rack that ``rack.init_from`` names, cut as this one is."""
    recomputed: frozenset[str] = frozenset()
    """Names of phases whose boundaries are computed anew for each window, though a cache could keep them."""


def set_up(config: Config, registry: Registry, progress: Progress | None = None) -> Setup:
    """Build the whole setup.

    Args:
        progress: as for ``tokenise``.

    Raises:
        UnavailableError: the device, a plugin or a package isn't there.
        UsageError: the corpus, the tokenizer or the rack to start from can't serve.
    """
    parts, source = _with_source(set_up_parts(config, registry), registry)
    sources, causal = find_sources(config.data, registry), parts.implementations.objective.options.causal
    corpus = tokenise(sources, config.data, parts.tokenizer, progress, causal=causal)
    return Setup(**asdict(parts, recurse=False), corpus=corpus, source=source)


def _with_source(parts: Parts, registry: Registry) -> tuple[Parts, Source | None]:
    """Return the parts with the stacks that the source gives, and the source, if there is one."""
    rack = parts.config.rack
    if rack.init_from is None:
        return parts, None
    source = Source.of(read_source(rack.init_from, registry), parts.spec, parts.implementations.mode.grows, rack.init)
    source.check_ends(parts.spec, parts.tokenizer.fingerprint.hex())
    source.check_files(parts.spec)
    return evolve(parts, spec=evolve(parts.spec, given=frozenset(source.stacks))), source


def recut(setup: Setup, blocks: tuple[int, ...], registry: Registry) -> Setup:
    """Return a setup whose rack has stacks of other numbers of blocks.

    Raises:
        UsageError: the trainer mode, a precision or the source can't serve it.
    """
    config = evolve(setup.config, rack=setup.config.rack.divided(blocks))
    mode = setup.implementations.mode
    spec = mode.partition(rack_spec(config, setup.spec.vocab_size, setup.noise.steps))
    check_partition(spec, origin(mode))
    _check_formats(setup.formats, spec)
    parts = Parts(**{each.name: getattr(setup, each.name) for each in fields(Parts)})
    parts, source = _with_source(evolve(parts, config=config, spec=spec), registry)
    return Setup(**asdict(parts, recurse=False), corpus=setup.corpus, source=source)


def set_up_parts(config: Config, registry: Registry) -> Parts:
    """Build everything but the text, and without a rack to start from.

    Raises:
        UnavailableError: the device, a plugin or a package isn't there.
        UsageError: the tokenizer can't serve, the trainer mode can't partition the rack, or a precision can't hold it.
    """
    device = select_device(config.run.device)
    if config.run.compile is True and (missing := missing_for_compiling(device)):
        raise UnavailableError(f'run.compile = true, and {missing}. Install it, or take "auto" or false.')
    implementations = build_implementations(config, registry, device)
    tokenizer = load_tokenizer(
        config.data.tokenizer, mask_token=config.data.mask_token, special_ids=config.data.special_ids
    )
    noise = Noise.of(_build(registry, "mask_schedule", config.mask_schedule, device), config.training)
    config = _with_sizes(config, device)
    spec = implementations.mode.partition(rack_spec(config, _vocab_size(config, tokenizer), noise.steps))
    check_partition(spec, origin(implementations.mode))
    _check_formats(implementations.formats, spec)
    return Parts(config, device, implementations.formats, tokenizer, spec, implementations, noise)


def set_up_rack(config: Config, registry: Registry, planned: PlannedRack) -> RackParts:
    """Build what a finished run's rack takes; of its plugins, those of ``RACK_HOOKS`` alone.

    Args:
        planned: what a mask schedule and a trainer mode once made of the configuration.

    Raises:
        UnavailableError: the device, a plugin or a package isn't there.
        UsageError: the tokenizer can't serve, or a precision can't hold the rack.
    """
    device = select_device(config.run.device)
    formats = build_formats(config, registry, device)
    tokenizer = load_tokenizer(
        config.data.tokenizer, mask_token=config.data.mask_token, special_ids=config.data.special_ids
    )
    config = _with_sizes(config, device)
    spec = planned.partition(rack_spec(config, _vocab_size(config, tokenizer), planned.time_fractions))
    _check_formats(formats, spec)
    return RackParts(config, device, formats, tokenizer, spec)


def _with_sizes(config: Config, device: torch.device) -> Config:
    window = resolved_window(config)
    config = evolve(config, training=evolve(config.training, window=window))
    return evolve(config, training=evolve(config.training, chunk_tokens=resolved_chunk(config, window, device)))


def _check_formats(formats: Formats, spec: RackSpec) -> None:
    for precision in (formats.trunk, *formats.stacks.values()):
        if reason := precision.refuses(spec):
            raise UsageError(reason)


def resolved_window(config: Config) -> int:
    """Return ``training.window``, or its default where it was left out.

    It decides the order of samples. So it is halved rather than made to fit, and is the same wherever there is room.
    """
    training = config.training
    if training.window is not None:
        return training.window
    budget = OF_FREE * memory().free if training.memory_budget is None else training.memory_budget
    window, sequence = WINDOW, 4 * config.data.seq_len * config.rack.d_model
    while window > training.batch_size * training.gradient_accumulation and window * sequence > budget / 4:
        window //= 2
    return max(window, training.batch_size * training.gradient_accumulation)


def resolved_chunk(config: Config, window: int, device: torch.device) -> int:
    """Return ``training.chunk_tokens``, or its default where it was left out.

    It decides the order of samples, and a boundary's bits. So it follows from the device's kind and from sizes alone. A
    window, which has whole chunks, is divided by it.
    """
    if config.training.chunk_tokens is not None:
        return config.training.chunk_tokens
    shape = rack_shape(config)
    a_token = chunk_bytes_a_token(shape["d_model"], shape["d_ff"])
    tokens, least = CHUNK_TOKENS[device.type], CHUNK_TOKENS["cpu"]
    while tokens > least and (tokens * a_token > CHUNK_ACTIVATIONS or window % max(1, tokens // config.data.seq_len)):
        tokens //= 2
    return tokens


def chunk_bytes_a_token(d_model: int, d_ff: int) -> int:
    """Estimate the bytes of activations that a token of a chunk has at its peak on its way through a block."""
    return 4 * (3 * d_ff + 2 * d_model)


def select_device(name: str, asked_by: str = "run.device") -> torch.device:
    """Return the device of a name; ``auto`` is a CUDA device where torch finds one.

    Args:
        asked_by: what says so, for messages.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UnavailableError(
            f'{asked_by} = "cuda", but torch {torch.__version__} ({built}) finds no CUDA device. '
            f'Set {asked_by} = "cpu" to run on the processor.'
        )
    return torch.device(name)


def build_implementations(config: Config, registry: Registry, device: torch.device) -> Implementations:
    """Make the chosen implementations from their options."""
    build = partial(_build, registry, device=device)
    optimizer: Optimizer = build("optimizer", config.optimizer)
    optimizer.check(device)
    cache: CacheBackend | None = None if config.cache_backend is None else build("cache_backend", config.cache_backend)
    if cache is not None:
        cache.device = device
    return Implementations(
        formats=build_formats(config, registry, device),
        cache=cache,
        mode=build("trainer_mode", config.trainer_mode),
        optimizer=optimizer,
        objective=build("objective", config.objective),
        trackers=tuple(build("tracker", choice) for choice in config.tracker.values()),
    )


def build_formats(config: Config, registry: Registry, device: torch.device) -> Formats:
    """Make the chosen precisions and adapters from their options."""
    build = partial(_build, registry, device=device)

    def precision(choice: Choice) -> Precision:
        built: Precision = build("precision", choice)
        built.check(device)
        return built

    active = precision(config.precision.active)
    if not active.trainable:
        raise UsageError(
            f"precision.active = \"{config.precision.active.use}\": a stack's full weights can't train at it. Use it "
            "for precision.trunk."
        )
    return Formats(
        active=active,
        trunk=active if config.precision.trunk is None else precision(config.precision.trunk),
        stacks={stack: precision(choice) for stack, choice in config.precision.stacks.items()},
        adapters=build_adapters(config, registry, device),
    )


def build_adapters(config: Config, registry: Registry, device: torch.device | None) -> dict[str, Adapter]:
    """Make the chosen adapters from their options, by name.

    Args:
        device: where they are to compute; None: they only read files.
    """
    chosen = {"stack": config.adapter.stack, "trunk": config.adapter.trunk}
    return {name: _build(registry, "adapter", each, device) for name, each in chosen.items() if each is not None}


def _build(registry: Registry, hook: str, choice: Choice, device: torch.device | None) -> Any:
    on = None if device is None else device.type
    return registry.build(registry.resolve(hook, choice.use), choice.options, device=on)


def _vocab_size(config: Config, tokenizer: Tokenizer) -> int:
    """Return how many rows embedding and head have.

    Raises:
        UsageError: fewer are asked for than the tokenizer has ids.
    """
    rows = config.rack.vocab_size
    if rows is not None and rows < tokenizer.vocab_size:
        raise UsageError(
            f"rack.vocab_size = {rows}, and {config.data.tokenizer} has ids up to {tokenizer.vocab_size - 1}, mask and "
            f"padding counted. Set at least {tokenizer.vocab_size}, or leave it out."
        )
    return rows or tokenizer.vocab_size


def rack_spec(config: Config, vocab_size: int, steps: tuple[float, ...]) -> RackSpec:
    """Return the rack's shape, before a trainer mode partitions it.

    Args:
        steps: mask fractions of the discrete time steps.
    """
    time_encoding = config.training.time_encoding if config.training.time == "input" else None
    return RackSpec(
        blocks=config.rack.stack_blocks,
        vocab_size=vocab_size,
        seq_len=config.data.seq_len,
        init_std=config.rack.init_std,
        time_encoding=time_encoding,
        time_fractions=steps if time_encoding else (),
        **rack_shape(config),
    )
