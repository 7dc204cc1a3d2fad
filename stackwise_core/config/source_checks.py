"""Whether the rack that ``rack.init_from`` names is there and fits the one that is configured."""

from collections.abc import Iterator, Sequence

from stackwise_core.config.layers import KeyPath
from stackwise_core.config.model import Config
from stackwise_core.config.rack_shape import rack_shape
from stackwise_core.config.source_run import nearest_run, read_source_run
from stackwise_core.config.words import shown
from stackwise_core.errors import UsageError

_SOURCE: KeyPath = ("rack", "init_from")
_FOLLOWS = {"n_kv_heads": "n_heads", "d_ff": "d_model"}
"""Keys that are settled by another where they are left out."""


def source_checks(config: Config) -> Iterator[tuple[Sequence[KeyPath], str, str]]:
    """The keys that may be to blame, the fault's own first; what is wrong; and a help text or nothing.

    Args:
        config: with absolute paths.
    """
    rack = config.rack
    if rack.init_from is None:
        return
    try:
        source = read_source_run(rack.init_from)
    except UsageError as error:
        near = nearest_run(rack.init_from)
        yield [_SOURCE], str(error), f"did you mean {near}?" if near else ""
        return
    if source.has_adapters:
        message = f"expected a run without adapters; {source.path} has some beside its weights"
        yield [_SOURCE], message, f'"stackwise merge {source.path}" folds them into the weights of a copy'
    ours = rack_shape(config)
    differing = [key for key in ours if ours[key] != source.rack[key]]
    for key in differing:
        left_out = getattr(rack, key) is None
        if left_out and _FOLLOWS[key] in differing:
            continue
        expected = f"expected {shown(source.rack[key])}, as {source.path} has"
        yield [("rack", key), _SOURCE], f"{expected}, found {shown(ours[key])}{' by default' if left_out else ''}", ""
    blocks = sum(source.blocks)
    adds_its_own = getattr(config.trainer_mode.options, "target_stacks", None) is not None
    if blocks > rack.stacks * rack.blocks_per_stack and not adds_its_own:
        found = f"{rack.stacks} x {rack.blocks_per_stack}"
        message = f"expected stacks x blocks_per_stack of at least {blocks}, as {source.path} has, found {found}"
        yield [("rack", "stacks"), ("rack", "blocks_per_stack"), _SOURCE], message, ""
