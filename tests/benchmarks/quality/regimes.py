"""The regimes: the rack and training that they share, and their differences."""

import copy
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

BASE: dict[str, dict[str, Any]] = {
    "run": {"name": "quality", "log_every": 100},
    "data": {"tokenizer": "bytes", "seq_len": 128},
    "rack": {"stacks": 4, "blocks_per_stack": 1, "d_model": 64, "n_heads": 4},
    "training": {"batch_size": 16, "block_lr": 1.5e-3, "embedding_lr": 1.5e-3, "masks": "resampled", "window": 256},
    "evaluation": {"draws": 2, "sequences": 1024},
    "mask_schedule": {"use": "linear", "min_fraction": 0.0, "max_fraction": 1.0},
    "precision": {"active": {"use": "bf16"}},
    "cache_backend": {"use": "disk"},
}

QUICK = {"evaluation.sequences": 32}
"""Changes for a trial of the whole benchmark."""

BUDGETS = {"tokens": "equal tokens", "flops": "equal FLOPs"}
"""The quantity that a regime and the baseline share, by the name of the plan's quantity."""


@frozen
class Regime:
    """A way to train the rack."""

    title: str
    trainer_mode: dict[str, Any]
    changes: dict[str, Any] = Factory(dict)
    """Other keys that differ from BASE, as ``"training.block_lr": 2e-3``."""


BASELINE = "end_to_end"

COPIES = {"start": "copy", "shares": [4.0, 3.0, 2.0, 1.0]}
"""New stacks begin as copies of their neighbours, and the first have more of the budget."""

REGIMES = {
    BASELINE: Regime("end to end", {"use": "end_to_end"}),
    "end_to_end_checkpointed": Regime(
        "end to end, activation checkpointing", {"use": "end_to_end"}, {"training.activation_checkpointing": True}
    ),
    "end_to_end_stackwise": Regime(
        "end to end, one stack at a time, 2 cycles", {"use": "end_to_end", "scope": "stackwise", "cycles": 2}
    ),
    "blockwise": Regime("blockwise", {"use": "blockwise"}),
    "layerwise_copies": Regime(
        "layerwise, copies",
        {"use": "layerwise", "start": "copy"},
        {"rack.stacks": 2, "rack.blocks_per_stack": 2},
    ),
    "blockwise_copies": Regime("blockwise, copies, 4:3:2:1", {"use": "blockwise", **COPIES}),
    "blockwise_copies_steeper": Regime(
        "blockwise, copies, 8:4:2:1", {"use": "blockwise", "start": "copy", "shares": [8.0, 4.0, 2.0, 1.0]}
    ),
    "progressive_finale": Regime(
        "progressive, copies, 4:3:2:1, finale of 20 %", {"use": "progressive", "finale": 0.2, **COPIES}
    ),
    "progressive_finale_stackwise": Regime(
        "progressive, copies, 4:3:2:1, finale of 20 % one stack at a time",
        {"use": "progressive", "finale": 0.2, "finale_scope": "stackwise", **COPIES},
    ),
    "progressive_prepend": Regime(
        "progressive, prepending copies, 4:3:2:1", {"use": "progressive", "building": "prepend", **COPIES}
    ),
    "fused_frozen": Regime("fused, frozen trunk, copies, 4:3:2:1", {"use": "fused", "fusion": "frozen", **COPIES}),
    "fused_trainable": Regime(
        "fused, trainable trunk, copies, 4:3:2:1", {"use": "fused", "fusion": "trainable", **COPIES}
    ),
    "banded": Regime("banded, widened by 10 %, 2 cycles", {"use": "banded", "cycles": 2, "widen": 0.1}),
    "one_stack": Regime("control: a rack of one stack, end to end", {"use": "end_to_end"}, {"rack.stacks": 1}),
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
