"""The ``manifest.json`` of a run."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import MANIFEST
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import json_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put

WHOLE = {
    "format": 1,
    "files": {
        "config.toml": {"bytes": 4, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        "stacks/000.safetensors": {
            "bytes": 4,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "adapters/000/stack/a": {
            "bytes": 4,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
    },
    "commit": 7,
    "pending": ["stacks/000.safetensors"],
    "dropped": ["stacks/001.safetensors"],
}
SOUND = st.sampled_from([WHOLE, WHOLE | {"pending": []}, WHOLE | {"dropped": []}]).map(
    lambda manifest: json.dumps(manifest).encode()
)


def check_manifest(case: tuple[bytes, bool], inside: Path) -> bool:
    """Check that readers and writers stay in the directory, and that each file is compared or named as missing."""
    content, linked = case
    if linked:  # a folder that is really another one
        (inside / "stacks").symlink_to(inside.parent / "secret")
    for name in ("config.toml", "stacks/000.safetensors.7.new", "stacks/001.safetensors", "adapters/000/stack/a"):
        if not (linked and name.startswith("stacks")):
            put(inside / name, b"test")
    put(inside / MANIFEST, content)
    with refusing(StackwiseError):
        run = RunDirectory(inside)
        for name in run.manifest:
            run.manifest.problem(name)
            with refusing(StackwiseError):
                run.manifest.checked(name)
        for index in (0, 1, 10**6):
            run.adapters(index), run.checksums(index), run.has_stack(index)
        run.manifest.recover()
        run.write_text("new.txt", "new")
        assert Manifest(inside).problem("new.txt") is None
        return True
    return False


MANIFEST_JSON = Target(
    "manifest.json",
    lambda: st.tuples(json_files(WHOLE), st.just(False)) | st.tuples(SOUND, st.just(True)),
    check_manifest,
    sound=lambda: (json.dumps(WHOLE).encode(), False),
)
