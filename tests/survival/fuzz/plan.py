"""The ``plan.json`` of a run that another starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stackwise_core.config.source_run import nearest_run, read_source_run
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import json_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import SPEC, put, specimens


def whole_plan() -> Any:
    return json.loads((specimens() / "finished" / "plan.json").read_text())


def check_source(content: bytes, inside: Path) -> bool:
    """Check that a source has its shape, fits a rack or doesn't, or is refused."""
    accepted = False
    put(inside / "plan.json", content)
    put(inside / "finished.json", b"{}")
    with refusing(UsageError):
        found = read_source_run(inside)
        assert found.blocks
        assert all(type(size) is int and size > 0 for size in found.blocks)
        accepted = True
        spec = RackSpec(blocks=(1,) * 3, **{**SPEC, "seq_len": 32, "vocab_size": 257})
        for grows in ("up", "down"):
            source = Source.of(found, spec, grows)
            assert all(0 <= block < sum(found.blocks) for blocks in source.stacks.values() for block in blocks)
            source.check_ends(spec, found.tokenizer)
    nearest_run(inside)
    nearest_run(inside.parent)
    return accepted


PLAN = Target(
    "plan.json", lambda: json_files(whole_plan()), check_source, sound=lambda: json.dumps(whole_plan()).encode()
)
