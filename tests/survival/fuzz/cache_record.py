"""The record of a store of boundaries."""

from __future__ import annotations

import json
from pathlib import Path

from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.stored_boundaries import owner, read_records
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import json_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put

NAMESPACE = "00ff00ff00ff00ff00ff00ff00ff00ff"
RECORD = {
    "format": 1,
    "run": "@HERE@/inside",
    "phase": "stack 1",
    "trunk": [0, 1],
    "layout": {"tokens": 16, "d_model": 32, "dtype": "bf16"},
    "made_of": {"torch": "2.13.0", "precisions": [["fp32", {}], ["nf4", {"double_quant": True}]], "seed": None},
}


def check_record(content: bytes, inside: Path) -> bool:
    """Check that it says of a store what is of the right types, or is no record."""
    accepted = False
    put(inside / f"{NAMESPACE}.json", content)
    owner(inside, NAMESPACE)
    with refusing(StackwiseError):
        for record in read_records(inside):
            assert record.namespace == NAMESPACE
            assert record.layout.bytes_per_entry > 0
            json.dumps(record.made_of)
            accepted = True
    return accepted


CACHE_RECORD = Target(
    "cache record", lambda: json_files(RECORD), check_record, sound=lambda: json.dumps(RECORD).encode()
)
