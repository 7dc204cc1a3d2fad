"""Check whether a run has taken a step. Without one there is nothing to resume, and its name is free."""

from __future__ import annotations

from pathlib import Path

from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import CACHE, MANIFEST, METRICS, PROGRESS, RESUME
from stackwise_core.run_files.progress_file import ProgressFile
from stackwise_core.run_files.records import peek_record


def has_step(directory: Path) -> bool:
    """Return whether a phase is done, a checkpoint is there, or a step was measured."""
    manifest, metrics = Manifest(directory), directory / METRICS
    if PROGRESS not in manifest:
        return False
    if any(name.startswith(f"{RESUME}/") for name in manifest) or (metrics.is_file() and metrics.stat().st_size):
        return True
    progress = peek_record(ProgressFile, manifest.where(PROGRESS))
    return progress is None or progress.phases != ()


def has_work(directory: Path) -> bool:
    """Return whether a run has taken a step, or has made boundaries for its first one."""
    return has_step(directory) or any(path.is_file() for path in (directory / CACHE).rglob("*"))


def was_only_begun(directory: Path) -> bool:
    """Return whether a directory is empty, or holds only files that a run writes before its first step."""
    if PROGRESS in Manifest(directory):
        return not has_step(directory)
    files = (path for path in directory.rglob("*") if not path.is_dir())
    return all(path.name == MANIFEST or path.name.endswith((".new", ".tmp")) for path in files)
