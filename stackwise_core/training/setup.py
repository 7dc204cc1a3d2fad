"""What a plan and a run both need: the device, the implementations, the text as sequences, and the rack's shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen

from stackwise_core.config.model import Choice, Config, RackConfig
from stackwise_core.data.sequences import Corpus, prepare
from stackwise_core.data.tokenizer import Tokenizer, load_tokenizer
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.interfaces.cache_backend import CacheBackend
from stackwise_core.interfaces.mask_schedule import MaskSchedule
from stackwise_core.interfaces.precision import Precision
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.registry import Registry


@frozen
class Implementations:
    """The five hooks' implementations that this configuration chose, made from their options."""

    schedule: MaskSchedule
    active: Precision
    trunk: Precision
    cache: CacheBackend | None
    mode: TrainerMode


@frozen
class Setup:
    """Everything that stands before the first phase is planned."""

    config: Config
    device: torch.device
    implementations: Implementations
    tokenizer: Tokenizer
    corpus: Corpus
    spec: RackSpec


def set_up(config: Config, registry: Registry, progress: Callable[[int], None] | None = None) -> Setup:
    """Build all of it.

    Args:
        progress: called with the bytes of text that were just tokenised.

    Raises:
        UnavailableError: the device, a plugin or a package isn't there.
        UsageError: the corpus or the tokenizer can't serve.
    """
    device = select_device(config.run.device)
    implementations = build_implementations(config, registry, device)
    tokenizer = load_tokenizer(config.data.tokenizer, mask_token=config.data.mask_token)
    corpus = prepare(config.data, tokenizer, progress)
    spec = implementations.mode.partition(
        rack_spec(config.rack, vocab_size=tokenizer.vocab_size, seq_len=config.data.seq_len)
    )
    return Setup(config, device, implementations, tokenizer, corpus, spec)


def select_device(name: str) -> torch.device:
    """The device that ``run.device`` names; ``auto`` is a CUDA device where torch finds one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UnavailableError(
            f'run.device = "cuda", but torch {torch.__version__} ({built}) finds no CUDA device. '
            'Set run.device = "cpu" to run on the processor.'
        )
    return torch.device(name)


def build_implementations(config: Config, registry: Registry, device: torch.device) -> Implementations:
    """Make the chosen implementations from their options."""

    def build(hook: str, choice: Choice) -> object:
        return registry.build(registry.resolve(hook, choice.use), choice.options, device=device.type)

    active = build("precision", config.precision.active)
    assert isinstance(active, Precision)
    if not active.trainable:
        raise UsageError(f'precision.active = "{config.precision.active.use}": a stack can\'t train in full at it.')
    trunk = active if config.precision.trunk is None else build("precision", config.precision.trunk)
    cache = None if config.cache_backend is None else build("cache_backend", config.cache_backend)
    schedule, mode = build("mask_schedule", config.mask_schedule), build("trainer_mode", config.trainer_mode)
    # registry.build has checked these against the hooks' interfaces; this tells the type checker.
    assert isinstance(trunk, Precision)
    assert isinstance(schedule, MaskSchedule)
    assert isinstance(mode, TrainerMode)
    assert cache is None or isinstance(cache, CacheBackend)
    return Implementations(schedule, active, trunk, cache, mode)


def rack_spec(rack: RackConfig, *, vocab_size: int, seq_len: int) -> RackSpec:
    """The rack's shape, with what the configuration leaves open filled in."""
    return RackSpec(
        blocks=(rack.blocks_per_stack,) * rack.stacks,
        vocab_size=vocab_size,
        seq_len=seq_len,
        d_model=rack.d_model,
        n_heads=rack.n_heads,
        n_kv_heads=rack.n_kv_heads or rack.n_heads,
        d_ff=rack.d_ff or -(-8 * rack.d_model // (3 * 64)) * 64,
        attention=rack.attention,
        tie_embeddings=rack.tie_embeddings,
        rope_theta=rack.rope_theta,
        norm_eps=rack.norm_eps,
        init_std=rack.init_std,
    )
