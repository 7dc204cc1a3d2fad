"""What is compared: the rack and the training that all regimes share, and where each of them differs."""

import copy
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

BASE: dict[str, dict[str, Any]] = {
    "run": {"name": "quality", "log_every": 100},
    "data": {"tokenizer": "bytes", "seq_len": 128},
    "rack": {"stacks": 4, "blocks_per_stack": 2, "d_model": 128, "n_heads": 2},
    "training": {"batch_size": 16, "block_lr": 4e-3, "embedding_lr": 4e-3, "masks": "resampled"},
    "evaluation": {"draws": 4, "sequences": 1024},
    "mask_schedule": {"use": "linear", "min_fraction": 0.0, "max_fraction": 1.0},
    "precision": {"active": {"use": "bf16"}},
    "cache_backend": {"use": "disk"},
}

QUICK = {"evaluation.sequences": 32}
"""Changes for a trial of the whole benchmark."""

BUDGETS = {"tokens": "equal tokens", "flops": "equal FLOPs"}
"""What a regime has in common with the baseline, by the name of the plan's quantity."""


@frozen
class Regime:
    """A way to train the rack."""

    title: str
    trainer_mode: dict[str, Any]
    changes: dict[str, Any] = Factory(dict)
    """Other keys that differ from BASE, as ``"training.block_lr": 2e-3``."""


BASELINE = "end_to_end"

REGIMES = {
    BASELINE: Regime("end to end", {"use": "end_to_end"}),
    "end_to_end_checkpointed": Regime(
        "end to end, activation checkpointing", {"use": "end_to_end"}, {"training.activation_checkpointing": True}
    ),
    "end_to_end_stackwise": Regime(
        "end to end, one stack at a time", {"use": "end_to_end", "scope": "stackwise", "cycles": 4}
    ),
    "layerwise": Regime("layerwise", {"use": "layerwise"}, {"training.masks": "fixed"}),
    "blockwise": Regime("blockwise", {"use": "blockwise"}, {"training.masks": "fixed"}),
    "progressive": Regime("progressive", {"use": "progressive", "building": "append", "start": "copy"}),
    "progressive_finale": Regime(
        "progressive, with a finale", {"use": "progressive", "building": "append", "start": "copy", "finale": 0.2}
    ),
    "progressive_finale_stackwise": Regime(
        "progressive, finale one stack at a time",
        {
            "use": "progressive",
            "building": "append",
            "start": "copy",
            "finale": 0.2,
            "finale_scope": "stackwise",
            "cycles": 3,
        },
    ),
    "progressive_prepend": Regime(
        "progressive, prepending", {"use": "progressive", "building": "prepend", "start": "copy"}
    ),
    "fused_frozen": Regime("fused, frozen trunk", {"use": "fused", "fusion": "frozen"}),
    "fused_trainable": Regime("fused, trainable trunk", {"use": "fused", "fusion": "trainable"}),
    "banded": Regime("banded", {"use": "banded", "shared": "interleaved", "cycles": 4, "widen": 0.1}),
}
"""By the name that ``--regimes`` takes; the order is the tables'."""


def configuration(
    regime: Regime, corpus: Path, tokens_directory: Path, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The regime's whole configuration.

    Args:
        changes: further keys by their dotted names, which win over the regime's own.
    """
    data = copy.deepcopy(BASE)
    data["data"] |= {"corpus": str(corpus), "tokens_directory": str(tokens_directory)}
    data["trainer_mode"] = dict(regime.trainer_mode)
    for key, value in {**regime.changes, **(changes or {})}.items():
        *tables, last = key.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return data
