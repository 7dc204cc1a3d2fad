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


def follow_source(merged: Merged) -> frozenset[str]:
    """Give the keys of ``[rack]`` that nothing sets the values of the rack that ``init_from`` names.

    None follows where a key that is set contradicts the source: ``source_checks`` says so, of those keys only. It also
    says what is wrong with a source that can't be read. ``data.tokenizer`` follows a checkpoint in any case.

    Returns:
        The keys of ``[rack]`` that were set.
    """
    rack = merged.data.get("rack")
    if not isinstance(rack, dict):
        return frozenset()
    given, source = frozenset(rack), _source(merged, rack)
    if source is None:
        return given
    data = merged.data.setdefault("data", {})
    if isinstance(source, SourceCheckpoint) and isinstance(data, dict):
        data.setdefault("tokenizer", str(source.path / TOKENIZER))
    if not _contradicts(rack, source):
        for key in shared_keys(rack.get("init")):
            rack.setdefault(key, source.rack[key])
    return given


def _contradicts(rack: Mapping[str, Any], source: SourceRun | SourceCheckpoint) -> bool:
    return any(key in rack and rack[key] != source.rack[key] for key in shared_keys(rack.get("init")))


def _source(merged: Merged, rack: Mapping[str, Any]) -> SourceRun | SourceCheckpoint | None:
    named = rack.get("init_from")
    layer = merged.origin(("rack", "init_from"))
    if not isinstance(named, str) or not named.strip() or layer is None:
        return None
    try:
        return read_source(Path(absolute(named, layer.folder)))
    except (UsageError, ValueError):
        return None
