"""Undamaged runs, from which hostile ones are made."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from stackwise_core.engine.events.events import PhaseStarted, StepDone
from stackwise_core.run_files.names import MANIFEST
from stackwise_core.system.files import sha256
from tests.survival.fuzz.hostile import damaged, json_files, tensor_files
from tests.survival.fuzz.hostile_toml import toml_files
from tests.tiny import TEXT, run_tiny

HERE = b"@HERE@"
"""In a file's content: the absolute path of the directory around the one that is read."""
SPEC: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_ff": 64,
    "attention": "bidirectional",
    "tie_embeddings": True,
    "rope_theta": 10000.0,
    "norm_eps": 1e-6,
    "init_std": 0.02,
}


@cache
def specimens() -> Path:
    """A directory with a finished run and an interrupted one, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="stackwise-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    changes = {
        "data.corpus": str(folder / "text.txt"),
        "data.validation_fraction": 0.3,
        "rack": {"stacks": 2, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2},
        "training": {"steps_per_stack": 4, "batch_size": 2, "masks_per_sample": 1},
        "evaluation": {"sequences": 2, "draws": 1},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
        "checkpoint": {"steps": 1},
        "precision": {"trunk": {"use": "nf4"}},
        "cache_backend": {"use": "disk", "keep": "rack"},
    }
    run_tiny(folder, changes)

    class Stop(Exception):
        pass

    def stop_within_the_second_stack(ran: Any) -> None:
        def listener(event: object) -> None:
            if isinstance(event, PhaseStarted):
                begun.append(event)
            if isinstance(event, StepDone) and len(begun) == len(ran.plan.phases) - 1 and event.step == 2:
                raise Stop

        begun: list[object] = []
        ran.engine.listener = listener

    with suppress(Stop):
        run_tiny(folder, {**changes, "run.name": "broken-off"}, stop_within_the_second_stack)
    (folder / "runs" / "tiny").rename(folder / "finished")
    (folder / "runs" / "broken-off").rename(folder / "broken-off")
    return folder


def files_of(run: str) -> list[str]:
    """The files of a specimen."""
    folder = specimens() / run
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def file_like(path: Path) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents in place of a file, by its kind."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json_files(json.loads(content))
    if path.suffix == ".safetensors":
        return tensor_files(content)
    return toml_files(content) if path.suffix == ".toml" else damaged(content)


def put(path: Path, content: bytes) -> None:
    """Write a file with ``HERE`` filled in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = next(each for each in path.parents if (each / "secret").is_dir())
    path.write_bytes(content.replace(HERE, os.fsencode(here)))


def forge(run: Path, name: str) -> None:
    """Have the manifest say of a file what is in it."""
    manifest = json.loads((run / MANIFEST).read_text())
    if name in manifest["files"]:
        manifest["files"][name] |= {"bytes": (run / name).stat().st_size, "sha256": sha256(run / name)}
        (run / MANIFEST).write_text(json.dumps(manifest))
