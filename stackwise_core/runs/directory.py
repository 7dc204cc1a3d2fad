"""A run's directory: what it was asked to do, where it ran, its full-precision weights, and a checksum of each file.

runs/NAME/
  config.toml  plan.json  environment.json
  embedding.safetensors  head.safetensors  stacks/000.safetensors ...
  stacks/000.embedding.safetensors  stacks/000.head.safetensors ...   where each stack has its own
  manifest.json     SHA-256 and size of each of these, written after them
  metrics.jsonl     grows while the run goes on, so it stands in no manifest
  cache/            boundaries, deleted when they are no longer needed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackwise_core.errors import StackwiseError
from stackwise_core.files import publish, publish_text, sha256

MANIFEST = "manifest.json"


def embedding_file(stack: int | None) -> str:
    """Name of the embedding's file: a stack's own, or None for the one that all share."""
    return "embedding.safetensors" if stack is None else f"stacks/{stack:03d}.embedding.safetensors"


def head_file(stack: int | None) -> str:
    """Name of an untied head's file: a stack's own, or None for the one that all share."""
    return "head.safetensors" if stack is None else f"stacks/{stack:03d}.head.safetensors"


class RunDirectory:
    """Reads and writes the files of one run; every file in the manifest is whole and as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = path / MANIFEST
        self._files: dict[str, dict[str, Any]] = {}
        if manifest.exists():
            self._files = json.loads(manifest.read_text(encoding="utf-8"))["files"]

    @classmethod
    def create(cls, parent: Path, name: str) -> RunDirectory:
        """Make a directory of this name, or of ``NAME-2``, ``NAME-3``, ... where there is one already."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            (path / "stacks").mkdir()
            return cls(path)

    @property
    def metrics(self) -> Path:
        """The file that measurements are appended to."""
        return self.path / "metrics.jsonl"

    @property
    def cache(self) -> Path:
        """The directory of the boundaries' stores."""
        return self.path / "cache"

    def write_text(self, name: str, text: str) -> None:
        """Write a text file and enter it in the manifest."""
        publish_text(self.path / name, text)
        self._enter(name)

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file and enter it in the manifest."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file and enter it in the manifest."""
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        publish(self.path / name, lambda beside: save_file(contiguous, beside, metadata={"format": "pt"}))
        self._enter(name)

    def has_stack(self, index: int) -> bool:
        """Whether a stack's weights were written."""
        return self.has(self.stack_file(index))

    def has(self, name: str) -> bool:
        """Whether a file was written."""
        return name in self._files

    def write_stack(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a stack's full-precision weights."""
        self.write_tensors(self.stack_file(index), tensors)

    def read_stack(self, index: int) -> dict[str, Tensor]:
        """Read a stack's full-precision weights, after checking them."""
        return self.read_tensors(self.stack_file(index))

    @staticmethod
    def stack_file(index: int) -> str:
        """Name of a stack's file within the run's directory."""
        return f"stacks/{index:03d}.safetensors"

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file after comparing it with the manifest.

        Raises:
            StackwiseError: it is missing, or isn't what was written.
        """
        path = self.path / name
        entry = self._files.get(name)
        if entry is None or not path.exists():
            raise StackwiseError(f"{path}: not there; the run hasn't written it, or it was deleted since.")
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            raise StackwiseError(f"{path}: damaged; its checksum isn't the one in {MANIFEST}.")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise StackwiseError(f"{path}: not a safetensors file: {error}") from error

    def _enter(self, name: str) -> None:
        path = self.path / name
        self._files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        publish_text(
            self.path / MANIFEST, json.dumps({"format": 1, "files": dict(sorted(self._files.items()))}, indent=2) + "\n"
        )
