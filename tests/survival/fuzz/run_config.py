"""The ``config.toml`` of a run."""

from __future__ import annotations

from pathlib import Path

from stackwise_core.config.load import load_run
from stackwise_core.errors import StackwiseError
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile_toml import TOML, toml_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put


def check_run_config(content: bytes, inside: Path) -> bool:
    """Check that it is read or refused, and that no code is taken from a run's own directory."""
    put(inside / "config.toml", content)
    (inside / "evil.py").write_text("import os\nos.system('true')\n")
    with refusing(StackwiseError):
        load_run(inside)
        return True
    return False


RUN_CONFIG = Target("config.toml of a run", lambda: toml_files(TOML), check_run_config, share=0.25, sound=lambda: TOML)
