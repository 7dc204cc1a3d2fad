"""What ``[rack]`` leaves out where it starts from another rack: it is as that one has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stackwise_core.config.layers import Merged
from stackwise_core.config.paths import absolute
from stackwise_core.config.source_checkpoint import TOKENIZER, SourceCheckpoint, read_source
from stackwise_core.config.source_run import SourceRun
from stackwise_core.errors import UsageError

SHAPE = ("d_model", "n_heads", "n_kv_heads", "d_ff", "tie_embeddings", "rope_theta", "norm_eps")
"""Keys of ``[rack]`` in which two racks must agree for one to hold the other's blocks."""


def shared_keys(init: object) -> tuple[str, ...]:
    """The keys in which a rack must agree with its source."""
    return ("d_model",) if init == "embedding" else SHAPE


def follow_source(merged: Merged) -> dict[str, Any]:
    """Give the keys of ``[rack]`` the values of the rack that ``init_from`` names.

    Those that are set to something else get them, too, so that no other key is found not to fit what is wrong;
    ``source_checks`` refuses them. It also says what is wrong with a source that can't be read. What is of another type
    stays. ``data.tokenizer`` follows a checkpoint where nothing sets it.

    Returns:
        The keys of ``[rack]`` that were set to something else, with what that was.
    """
    rack = merged.data.get("rack")
    if not isinstance(rack, dict) or (source := _source(merged, rack)) is None:
        return {}
    data = merged.data.setdefault("data", {})
    if isinstance(source, SourceCheckpoint) and isinstance(data, dict):
        data.setdefault("tokenizer", str(source.path / TOKENIZER))
    theirs = {key: source.rack[key] for key in shared_keys(rack.get("init"))}
    contradicting = {key: rack[key] for key in theirs if key in rack and _differs(rack[key], theirs[key])}
    for key, value in theirs.items():
        if key in contradicting or key not in rack:
            rack[key] = value
    return contradicting


def _differs(value: object, theirs: object) -> bool:
    """Whether a value of the right type isn't the source's."""
    same_type = type(value) is type(theirs) or (type(value), type(theirs)) == (int, float)
    return same_type and value != theirs


def _source(merged: Merged, rack: Mapping[str, Any]) -> SourceRun | SourceCheckpoint | None:
    named = rack.get("init_from")
    layer = merged.origin(("rack", "init_from"))
    if not isinstance(named, str) or not named.strip() or layer is None:
        return None
    try:
        return read_source(Path(absolute(named, layer.folder)))
    except (UsageError, ValueError):
        return None
