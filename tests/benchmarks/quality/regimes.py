"""The regimes: the rack and training that they share, and their differences."""

import copy
from collections.abc import Mapping
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

STREAMED = {"training.residency": "stream", "training.offload": "disk"}
"""Changes with which a regime is planned: one stack at a time in memory."""


@frozen
class Regime:
    """A way to train the rack."""

    title: str
    trainer_mode: dict[str, Any]
    changes: dict[str, Any] = Factory(dict)
    """Other keys that differ from BASE, as ``"training.block_lr": 2e-3``."""
    in_memory: bool = False
    """Whether all of what a phase trains is in memory. If not, the regime is counted as streamed."""
    streams: bool = False
    """Whether the run itself is streamed; without, it runs in memory, where it ends with the same bits sooner."""

    @property
    def planned(self) -> dict[str, Any]:
        """Keys that differ from BASE where its costs are planned."""
        return self.changes if self.in_memory else {**self.changes, **STREAMED}

    @property
    def run(self) -> dict[str, Any]:
        """Keys that differ from BASE where it runs."""
        return {**self.changes, **STREAMED} if self.streams else {**self.changes, "training.residency": "memory"}


BASELINE = "end_to_end"

COPIES = {"start": "copy", "shares": [4.0, 3.0, 2.0, 1.0]}
"""New stacks begin as copies of their neighbours, and the first have more of the budget."""

GROWN = {"use": "progressive", "trunk": "trains", "start": "copy"}
"""Existing stacks train along with those that join."""

RUN_COURSE = {"training.course": "run"}
"""One learning-rate schedule over all phases, and moments that go on."""

HIERARCHICAL = {"use": "fused", "fusion": "hierarchical", "start": "copy"}

PRACTICAL = {
    "precision.trunk": {"use": "nf4"},
    "adapter.trunk": {"use": "lora", "rank": 8},
}
"""A quantised trunk whose adapters train along with each new stack."""

REGIMES = {
    BASELINE: Regime("end to end", {"use": "end_to_end"}, in_memory=True),
    "end_to_end_streamed": Regime("end to end, streamed", {"use": "end_to_end"}),
    "end_to_end_stackwise": Regime(
        "end to end, one stack at a time, 2 cycles",
        {"use": "end_to_end", "scope": "stackwise", "cycles": 2},
        in_memory=True,
    ),
    "blockwise": Regime("blockwise", {"use": "blockwise"}),
    "blockwise_copies": Regime("blockwise, copies, 4:3:2:1", {"use": "blockwise", **COPIES}),
    **{
        f"finale_{share}": Regime(
            f"progressive, copies, 4:3:2:1, finale of {share} %",
            {"use": "progressive", "finale": share / 100, **COPIES},
        )
        for share in (10, 20, 40)
    },
    "finale_40_run": Regime(
        "progressive, copies, 4:3:2:1, finale of 40 %, one course",
        {"use": "progressive", "finale": 0.4, **COPIES},
        RUN_COURSE,
    ),
    "finale_40_run_streamed": Regime(
        "the same, as a streamed run",
        {"use": "progressive", "finale": 0.4, **COPIES},
        RUN_COURSE,
        streams=True,
    ),
    "progressive_prepend": Regime(
        "progressive, prepending copies, 4:3:2:1", {"use": "progressive", "building": "prepend", **COPIES}
    ),
    "fused_frozen": Regime("fused, frozen trunk, copies, 4:3:2:1", {"use": "fused", "fusion": "frozen", **COPIES}),
    "fused_trainable": Regime(
        "fused, trainable trunk, copies, 4:3:2:1", {"use": "fused", "fusion": "trainable", **COPIES}
    ),
    "fused_trainable_run": Regime(
        "fused, trainable trunk, copies, 4:3:2:1, one course",
        {"use": "fused", "fusion": "trainable", **COPIES},
        RUN_COURSE,
    ),
    "hierarchical": Regime("fused, hierarchical, copies", HIERARCHICAL),
    "hierarchical_run": Regime("fused, hierarchical, copies, one course", HIERARCHICAL, RUN_COURSE),
    **{
        f"late_{share}": Regime(
            f"one stack for {share} % of the steps, then all, copies",
            {**GROWN, "growth": "all", "shares": [share, 100 - share]},
        )
        for share in (25, 50, 75)
    },
    **{
        f"late_{share}_run": Regime(
            f"one stack for {share} % of the steps, then all, copies, one course",
            {**GROWN, "growth": "all", "shares": [share, 100 - share]},
            RUN_COURSE,
        )
        for share in (10, 25, 50, 75)
    },
    "doubling_run": Regime(
        "1, 2, then 4 stacks, copies, 1:1:2, one course",
        {**GROWN, "growth": "double", "shares": [1.0, 1.0, 2.0]},
        RUN_COURSE,
    ),
    "banded": Regime("banded, widened by 10 %, 2 cycles", {"use": "banded", "cycles": 2, "widen": 0.1}),
    "practical": Regime(
        "progressive, copies, 4:3:2:1, nf4 trunk with adapters that train",
        {"use": "progressive", "trunk": "adapters", **COPIES},
        PRACTICAL,
    ),
    "one_stack": Regime("control: a rack of one stack, end to end", {"use": "end_to_end"}, {"rack.stacks": 1}),
}
"""By the name that ``--regimes`` takes; the order is the tables'."""


def configuration(regime: Regime, corpus: Path, tokens_directory: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration of a run in this regime.

    Args:
        changes: keys that differ from BASE, by their dotted names.
    """
    data = copy.deepcopy(BASE)
    data["data"] |= {"corpus": str(corpus), "tokens_directory": str(tokens_directory)}
    data["trainer_mode"] = dict(regime.trainer_mode)
    for key, value in changes.items():
        *tables, last = key.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return data
