"""Keys that a configuration leaves out where its rack starts from another one: they are as that one has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stackwise_core.config.layers import KeyPath, Merged
from stackwise_core.config.paths import absolute
from stackwise_core.config.source_checkpoint import SourceCheckpoint, read_source
from stackwise_core.config.source_run import SourceRun
from stackwise_core.config.source_vocabulary import BYTES, vocabulary_of
from stackwise_core.config.tokenizer_json import SpecialIds
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.registry import Registry

SHAPE = ("d_model", "n_heads", "n_kv_heads", "d_ff", "tie_embeddings", "rope_theta", "norm_eps")
"""Keys of ``[rack]`` in which two racks must agree for one to hold the other's blocks."""

Contradicting = dict[KeyPath, tuple[Any, Any]]
"""Keys that were set to something else than the source has, with the source's value and that."""


def shared_keys(init: object) -> tuple[str, ...]:
    """Return the keys in which a rack must agree with its source."""
    return ("d_model",) if init == "embedding" else SHAPE


def follow_source(merged: Merged, registry: Registry) -> Contradicting:
    """Give the keys of ``[rack]`` and ``[data]`` the values of the rack that ``init_from`` names.

    Those that are set to something else get them, too, so that no other key is found not to fit what is wrong;
    ``source_checks`` refuses them. It also says what is wrong with a source that can't be read. What is of another type
    stays. ``data.tokenizer`` follows a checkpoint where nothing sets it.

    Returns:
        The keys that were set to something else.
    """
    rack = merged.data.get("rack")
    if not isinstance(rack, dict) or (source := _source(merged, rack, registry)) is None:
        return {}
    contradicting: Contradicting = {}
    theirs = {key: source.rack[key] for key in shared_keys(rack.get("init"))}
    _follow(rack, theirs, ("rack",), contradicting)
    data = merged.data.setdefault("data", {})
    if not isinstance(data, dict):
        return contradicting
    if isinstance(source, SourceCheckpoint):
        data.setdefault("tokenizer", source.described.tokenizer)
    if data.get("tokenizer", BYTES) != BYTES and source.special_ids:
        special_ids = data.setdefault("special_ids", {})
        if isinstance(special_ids, dict):
            _follow(special_ids, source.special_ids, ("data", "special_ids"), contradicting)
    if (rows := _rows(merged, source, rack, data)) is not None:
        _follow(rack, {"vocab_size": rows}, ("rack",), contradicting)
    return contradicting


def _follow(table: dict[str, Any], theirs: Mapping[str, Any], path: KeyPath, contradicting: Contradicting) -> None:
    """Give keys of a table the source's values, and note those that were set to something else."""
    for key, value in theirs.items():
        if key not in table:
            table[key] = value
        elif _differs(table[key], value):
            contradicting[*path, key] = (value, table[key])
            table[key] = value


def _differs(value: object, theirs: object) -> bool:
    """Return whether a value of the right type differs from the source's."""
    same_type = type(value) is type(theirs) or (type(value), type(theirs)) == (int, float)
    return same_type and value != theirs


def _rows(
    merged: Merged, source: SourceRun | SourceCheckpoint, rack: Mapping[str, Any], data: Mapping[str, Any]
) -> int | None:
    """Return what ``rack.vocab_size`` must be; None where it may be left out, or be as it is."""
    if isinstance(source, SourceRun):
        return source.vocab_size
    layer = merged.origin(("data", "tokenizer"))
    ids, asked = _ids_of(data, layer.folder if layer else Path.cwd()), rack.get("vocab_size")
    if ids is None or source.rows <= ids or (type(asked) is int and asked >= source.rows):
        return None  # more rows than a checkpoint has are new ones
    return source.rows


def _ids_of(data: Mapping[str, Any], folder: Path) -> int | None:
    """Return how many ids the tokenizer of ``[data]`` has, mask and padding counted; None where it can't be read."""
    tokenizer, mask_token, special_ids = (data.get(key) for key in ("tokenizer", "mask_token", "special_ids"))
    if tokenizer in (None, BYTES):
        return vocabulary_of(BYTES).size
    try:
        vocabulary = vocabulary_of(absolute(tokenizer, folder))
        return SpecialIds.of(vocabulary, mask_token, special_ids or {}).size
    except (UsageError, ValueError, TypeError, AttributeError):
        return None  # what is wrong is said where the keys are checked


def _source(merged: Merged, rack: Mapping[str, Any], registry: Registry) -> SourceRun | SourceCheckpoint | None:
    named = rack.get("init_from")
    layer = merged.origin(("rack", "init_from"))
    if not isinstance(named, str) or not named.strip() or layer is None:
        return None
    try:
        return read_source(absolute(named, layer.folder), registry)
    except (UsageError, UnavailableError, ValueError):
        return None
