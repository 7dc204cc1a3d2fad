"""Check that the source of ``rack.init_from`` exists and fits the configured rack."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from stackwise_core.config.layers import KeyPath
from stackwise_core.config.model import Config
from stackwise_core.config.rack_shape import rack_shape
from stackwise_core.config.source_checkpoint import SourceCheckpoint, read_source
from stackwise_core.config.source_keys import Contradicting
from stackwise_core.config.source_run import SourceRun, nearest_run
from stackwise_core.config.source_vocabulary import BYTES, MASK_ID, other_vocabulary
from stackwise_core.config.tokenizer_json import MASK, read_vocabulary
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.interfaces.checkpoint_format import RefusedCheckpoint
from stackwise_core.registry import Registry
from stackwise_core.words import shown

_SOURCE: KeyPath = ("rack", "init_from")


@frozen
class Misfit:
    """One thing that is wrong with a source."""

    keys: Sequence[KeyPath]
    """The keys that may be to blame, the fault's own first."""
    message: str
    help: str = ""
    unavailable: UnavailableError | None = None
    """Set where nothing is wrong, and a plugin or a package isn't there."""


def source_checks(config: Config, contradicting: Contradicting, registry: Registry) -> Iterator[Misfit]:
    """Yield all that is wrong with the source, or in which this rack isn't as it is.

    Args:
        config: with absolute paths, its rack as the source has it.
        contradicting: keys that were set to something else, as ``follow_source`` gives them.
    """
    rack = config.rack
    if rack.init_from is None:
        return
    try:
        source = read_source(rack.init_from, registry)
    except RefusedCheckpoint as error:
        yield from (Misfit([_SOURCE], problem) for problem in error.problems)
        return
    except UnavailableError as error:
        yield Misfit([_SOURCE], str(error), unavailable=error)
        return
    except UsageError as error:
        near = nearest_run(rack.init_from)
        help = f"did you mean {near}?" if near else ""
        if not near and not os.path.isdir(rack.init_from):
            help = "it must be on disk, a run or a checkpoint: nothing is downloaded"
        yield Misfit([_SOURCE], str(error), help)
        return
    yield from _refusals(rack.init, source)
    ours, attention = dict(contradicting), rack_shape(config)["attention"]
    if isinstance(source, SourceRun) and rack.init == "all" and attention != source.rack["attention"]:
        # A checkpoint may be read in both directions, whatever it was trained for.
        ours["rack", "attention"] = source.rack["attention"], attention
    for key, (theirs, value) in ours.items():
        message = f"expected {shown(theirs)}, as {source.path} has, found {shown(value)}"
        yield Misfit([key, _SOURCE], message)
    if rack.init == "all":
        yield from _too_few_blocks(config, source)
    if isinstance(source, SourceCheckpoint):
        yield from _checkpoint_checks(config, source)


def _refusals(init: str, source: SourceRun | SourceCheckpoint) -> Iterator[Misfit]:
    """Refuse a source of which something would be left behind, such as adapters; the embedding may do without."""
    if isinstance(source, SourceCheckpoint):
        for refusal in source.described.refusals:
            if init == "all" or refusal.embedding_too:
                yield Misfit([_SOURCE], refusal.message, refusal.help)
    elif source.has_adapters and init == "all":
        message = f"expected a run without adapters; {source.path} has some beside its weights"
        command = f"stackwise merge {shlex.quote(str(source.path))}"
        yield Misfit([_SOURCE], message, f'"{command}" folds them into the weights of a copy')


def _too_few_blocks(config: Config, source: SourceRun | SourceCheckpoint) -> Iterator[Misfit]:
    rack, blocks = config.rack, sum(source.blocks)
    adds_its_own = getattr(config.trainer_mode.options, "target_stacks", None) is not None
    there = rack.blocks if rack.blocks_per_stack == "auto" else sum(rack.stack_blocks)
    if there is None or blocks <= there or adds_its_own:
        return
    keys, found = ["stacks", "blocks_per_stack"], f"{rack.stacks} x {rack.blocks_per_stack}"
    if not isinstance(rack.blocks_per_stack, int):
        keys, found = ["blocks" if rack.blocks_per_stack == "auto" else "blocks_per_stack"], str(there)
    message = f"expected {' x '.join(keys)} of at least {blocks}, as {source.path} has, found {found}"
    yield Misfit([*(("rack", key) for key in keys), _SOURCE], message)


def _checkpoint_checks(config: Config, source: SourceCheckpoint) -> Iterator[Misfit]:
    try:
        other = other_vocabulary(config.data.tokenizer, source.described.tokenizer)
    except UsageError as error:
        other = str(error)
    if other is not None:
        yield Misfit([("data", "tokenizer"), _SOURCE], other)
    else:
        yield from _mask_checks(config, source)
    if config.rack.init == "all" and not source.has_head:
        message = f"{source.path} has no LM head, as a base model ({source.described.title}), and no tied embedding"
        yield Misfit([_SOURCE], message, 'rack.init = "embedding" takes its embedding alone')


def _mask_checks(config: Config, source: SourceCheckpoint) -> Iterator[Misfit]:
    """Refuse another mask than the checkpoint's own, which has a trained row."""
    theirs, data = source.special_ids.get(MASK), config.data
    if theirs is None:
        return
    if data.tokenizer == BYTES:
        if theirs != MASK_ID:
            message = f'expected the mask {theirs}, as {source.path} has; with "bytes" it is {MASK_ID}'
            yield Misfit([("data", "tokenizer"), _SOURCE], message, "leave it out to take the checkpoint's own")
    elif data.mask_token is not None:
        ours = read_vocabulary(Path(data.tokenizer)).ids.get(data.mask_token)
        if ours not in (None, theirs):
            message = (
                f"expected the mask {theirs}, as {source.path} has, found {shown(data.mask_token)}, which is {ours}"
            )
            yield Misfit([("data", "mask_token"), _SOURCE], message, "leave it out to take the checkpoint's own")
