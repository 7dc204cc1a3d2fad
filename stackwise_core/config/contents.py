"""Hashes of the content at the paths of a configuration: two paths with the same content count as the same path."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from stackwise_core.config.layers import KeyPath
from stackwise_core.config.model import Config
from stackwise_core.config.paths import with_paths
from stackwise_core.config.source_checkpoint import read_source
from stackwise_core.config.source_run import SourceRun
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.registry import Registry
from stackwise_core.run_files.names import MANIFEST
from stackwise_core.system.files import sha256
from stackwise_core.words import dotted

ENDS = 1 << 20
"""Bytes at either end of a file with weights that stand for all of it."""
SOURCE = "rack.init_from"


def paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of each path, those of plugins' options too."""
    found: list[tuple[str, str]] = []

    def note(path: KeyPath, value: str) -> str:
        found.append((dotted(path), value))
        return value

    with_paths(config, note)
    yield from found


def contents(config: Config, registry: Registry) -> dict[str, str]:
    """Return hashes by dotted key, of those paths whose content decides a run's numbers.

    Texts aren't among them, whose fingerprint is a plan's, nor plugin files, which the environment has, nor folders
    that a run writes to.
    """
    return {key: hash_ for key, value in paths(config) if (hash_ := content(key, value, registry)) is not None}


def content(key: str, value: str, registry: Registry) -> str | None:
    """Return the hash of a path's content; None if the key isn't such a path, or nothing is there."""
    if key == SOURCE:
        return source_hash(value, registry)
    table, _, rest = key.partition(".")
    if table == "run" or (table == "data" and rest != "tokenizer") or not os.path.isfile(value):
        return None
    try:
        return sha256(Path(value))
    except OSError:
        return None


def source_hash(directory: str, registry: Registry) -> str | None:
    """Return a hash of a run or checkpoint that doesn't depend on its path; None if there is none.

    A run's manifest has the hashes of its weights. Of a checkpoint's files only both ends are read: a run
    copies the weights when it begins, and doesn't need the files afterwards.
    """
    try:
        source = read_source(directory, registry)
    except (UsageError, UnavailableError, ValueError):
        return None
    try:
        if isinstance(source, SourceRun):
            files = json.loads((source.path / MANIFEST).read_text(encoding="utf-8"))["files"]
            weights = {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
            return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
        digest = hashlib.sha256()
        for name in sorted(set(source.described.files)):
            path = source.path / name
            size = path.stat().st_size
            digest.update(f"{name} {size};".encode())
            with path.open("rb") as file:
                digest.update(file.read(ENDS))
                file.seek(max(ENDS, size - ENDS))
                digest.update(file.read(ENDS))
        return digest.hexdigest()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
