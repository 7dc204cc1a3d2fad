"""Check whether a run has taken a step. Without one there is nothing to resume, and its name is free."""

from __future__ import annotations

import json
from pathlib import Path

from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import CACHE, MANIFEST, METRICS, PROGRESS, RESUME


def has_step(directory: Path) -> bool:
    """Return whether a phase is done, a checkpoint is there, or a step was measured."""
    manifest, metrics = Manifest(directory), directory / METRICS
    if PROGRESS not in manifest:
        return False
    if any(name.startswith(f"{RESUME}/") for name in manifest) or (metrics.is_file() and metrics.stat().st_size):
        return True
    try:
        progress = json.loads(manifest.where(PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # who resumes it says what is wrong
    return not isinstance(progress, dict) or progress.get("phases") != []


def has_work(directory: Path) -> bool:
    """Return whether a run has taken a step, or has made boundaries for its first one."""
    return has_step(directory) or any(path.is_file() for path in (directory / CACHE).rglob("*"))


def was_only_begun(directory: Path) -> bool:
    """Return whether a directory is empty, or holds only files that a run writes before its first step."""
    if PROGRESS in Manifest(directory):
        return not has_step(directory)
    files = (path for path in directory.rglob("*") if not path.is_dir())
    return all(path.name == MANIFEST or path.name.endswith((".new", ".tmp")) for path in files)
